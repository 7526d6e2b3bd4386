"""The passes of bnpass where other tools look for them: one file per tool, imported by that tool alone."""
