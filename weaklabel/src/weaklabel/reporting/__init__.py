"""What `weaklabel.report` is made of: scores on gold, tables for a terminal, plots."""
