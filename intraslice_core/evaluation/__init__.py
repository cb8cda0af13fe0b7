"""What a compression did to quality and speed, and whether the files on disk tell the truth."""
