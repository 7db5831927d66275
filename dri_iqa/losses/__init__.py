"""What is minimised: contrast between views, restoration of the clean image, and the score."""
