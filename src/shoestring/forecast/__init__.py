"""What a job would take and how long, on this machine or on one that a file describes, before anything is done."""
