"""What made results/reference: one script for each table or figure."""
