"""Reports: manifests in; rows, tables, figures and one self-contained page out."""
