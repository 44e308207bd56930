"""Everything that touches the disk or the network: checkpoints, pictures, masks, downloads."""
