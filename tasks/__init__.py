"""Data sets, prompts and answer checking. Imports ``spec`` only: no torch, no SQL, no Streamlit."""
