"""From the record of a forward pass to the axes that move together."""
