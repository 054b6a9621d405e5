"""Speed, memory and quality of colbert_rag beside its peers; see README.md in this folder."""
