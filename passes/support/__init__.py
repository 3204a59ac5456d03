"""What passes share: reading and editing graphs, the words for sites, running passes."""
