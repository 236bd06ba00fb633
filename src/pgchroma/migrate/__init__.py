"""Moving existing data into pgchroma: source readers, plan, copy, proof and receipt."""
