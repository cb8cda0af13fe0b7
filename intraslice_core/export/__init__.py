"""Export of compressed models to the formats of the targets' runtimes."""
