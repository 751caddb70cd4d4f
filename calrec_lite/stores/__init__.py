"""Item vectors where people keep vectors: LanceDB, Qdrant, a Parquet file."""
