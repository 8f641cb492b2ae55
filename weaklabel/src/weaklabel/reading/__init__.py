"""How each format of a table is read; see `weaklabel.tables`."""
