"""What the sweep searches, and what it finds."""
