"""What generates crystals, and how each is asked."""
