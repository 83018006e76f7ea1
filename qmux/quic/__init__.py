"""QUIC behind one seam: ``engine`` says what an engine is, each sub-package is one."""
