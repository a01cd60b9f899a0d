"""Files that strangers made: what each tries, and what it comes to."""
