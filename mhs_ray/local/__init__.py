"""The platform's work on one machine, without its servers: what ``mhs test``, ``compare`` and ``replay`` stand on."""
