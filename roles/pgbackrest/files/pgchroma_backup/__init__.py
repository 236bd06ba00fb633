"""What a backed-up host runs by itself: backups, checks, restores and drills with pgBackRest. Needs Python only, no package."""
