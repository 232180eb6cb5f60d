"""Blob stores behind one port: a folder with its own signed URLs (`local`, `server`) and S3 (`s3`).

Start with `keys` and `signing`; `local` is the folder, `http` serves it, `server` is its process.
"""
