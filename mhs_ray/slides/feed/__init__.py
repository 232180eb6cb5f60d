"""The tile feed: a container reads tiles that the node has decoded, over one mounted unix socket.

The protocol, version 1, for any language. The socket is at ``$MHS_TILES_SOCKET``. The client connects and sends one
line of JSON, ending with a newline::

    {"version": 1, "transport": "arrow"}      or      {"version": 1, "transport": "memory"}

**arrow**: the server answers with one Arrow IPC stream: columns slide, level, x, y (level-0 pixels), mpp, and tile
(extension ``arrow.fixed_shape_tensor``, uint8, height x width x 3). It ends with Arrow's end of stream. The schema's
metadata has ``mhs.plan``, the plan as JSON. Any Arrow library reads it; the socket's buffer is the backpressure.

**memory**: the server answers with lines of JSON, and with the first one passes a file descriptor (SCM_RIGHTS) of
memory to be mapped, read only, MAP_SHARED::

    {"version": 1, "slots": 7, "slot_bytes": 12582912, "plan": {"tiles": 4800, "width": 256, "height": 256,
     "mpp": 0.5, "level": 0, "downsample": 1.0, "factor": 2.0, "slide": "…", "scaling": "exact"}}
    {"slot": 3, "count": 64, "level": 0, "mpp": 0.5, "x": [0, 512, …], "y": [0, 0, …]}      once per batch
    {"end": true, "tiles": 4800}

The tiles of a batch begin at ``slot * slot_bytes``: count x height x width x 3 bytes, RGB, row by row. When done with
them the client says ``{"free": 3}``; the slot is then used again. A client may hold some slots at once; the server
sends the next batch when it has a slot to spare.

In both transports an error is one line ``{"error": "…"}`` (arrow: before the stream begins, else the connection just
ends early, without end of stream). Several connections may be open (the workers of a data loader): each batch goes to
one of them. All connections together get each tile once.

`mhs_ray/templates/tiles/mhs_tiles.py` is a reader in one file that needs Python and numpy.
"""
