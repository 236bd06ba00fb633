# Test machines: docs/TEST_MACHINES.md. NAME= picks the machine, SUITE=trixie|bookworm its Debian, ADDRESS= a fixed address.
MACHINE := scripts/machine
NAME ?= lab1
SUITE ?= trixie
# The default machine has the address that inventories/lab gives it; others get the next free one unless told.
ADDRESS ?= $(if $(filter lab1,$(NAME)),10.91.0.11)

.PHONY: machine-base
machine-base: ## Build the cached base tree of the test machines: SUITE=trixie
	scripts/install-system-packages
	$(MACHINE) base --suite $(SUITE)

.PHONY: machine-up
machine-up: ## Boot a test machine: NAME=lab1 SUITE=trixie
	scripts/install-system-packages
	$(MACHINE) up $(NAME) --suite $(SUITE) $(addprefix --address=,$(ADDRESS))

.PHONY: machine-ssh
machine-ssh: ## Enter a test machine: NAME=lab1
	exec $(MACHINE) ssh $(NAME)

.PHONY: machine-down
machine-down: ## Remove a test machine and its disk: NAME=lab1
	$(MACHINE) rm $(NAME)

.PHONY: machine-list
machine-list: ## List the test machines
	$(MACHINE) list

.PHONY: machine-selftest
machine-selftest: ## Prove reboot, crash, power-off and isolation on two machines of its own
	scripts/install-system-packages
	scripts/machine-selftest $(SUITE)
