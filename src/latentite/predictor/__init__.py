"""Stage 4: property predictors, trained, used and exported."""
