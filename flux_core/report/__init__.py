"""Pictures and plots of what happened."""
