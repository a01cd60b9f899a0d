"""Runs of `convsqueeze merge` that are killed at random moments, and what they leave behind."""
