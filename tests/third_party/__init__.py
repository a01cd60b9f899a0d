"""Networks whose code no one here wrote, scanned and squeezed: `python -m tests.third_party`."""
