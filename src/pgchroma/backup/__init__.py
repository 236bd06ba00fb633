"""What makes a backup worth its name: digests of what was backed up, checks of what was restored, dumps of single collections."""
