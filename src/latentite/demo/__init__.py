"""`latentite demo`: every stage that there is, in a few minutes on two CPU cores."""
