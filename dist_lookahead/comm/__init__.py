"""Communication between agents: real processes or many agents in one process, behind one protocol."""
