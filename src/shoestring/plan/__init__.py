"""Which engine keeps a job inside its budget: prediction, choice, and the sum that is shown before work starts."""
