"""The command line: one file per verb. Nothing here touches a graph."""
