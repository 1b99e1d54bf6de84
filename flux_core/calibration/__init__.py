"""What layers read and what they lose: observing, second moments, sensitivity, calibrating."""
