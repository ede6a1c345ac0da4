"""The ledger: which purge orders are open, and which receipts settle them."""
