"""What each training framework wants to find in a folder; see `weaklabel.export`."""
