"""What measures the project, beside stock Enterprise Gateway and the physical floor, as ratios."""
