"""What Switchyard promises, held on every broker: the same cases, the same actors, the same answers."""
