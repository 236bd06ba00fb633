# What can break under a storm of writes: docs/FAULTS.md. TIMES= how often each fault strikes, ONLY= part of a name.
.PHONY: faults
faults: venv ## Break things while clients write, count lost writes: make faults TIMES=3 ONLY="PostgreSQL"
	PYTHONPATH=tests $(BIN)/python -m faults.main $(if $(TIMES),--times $(TIMES)) $(if $(ONLY),--only "$(ONLY)")
