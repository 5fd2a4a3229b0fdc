"""Text that others wrote: what of it may be a name, how it is shown, and what of it is secret."""
