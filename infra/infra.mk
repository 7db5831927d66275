# Paths to a cluster, included by the Makefile; docs/operations.md walks through each.
RELEASE := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE := dri-iqa:$(RELEASE)-ray$(shell sed -n 's/^ray==//p' constraints.txt)
MLFLOW_IMAGE := dri-iqa-mlflow:$(RELEASE)-mlflow$(shell sed -n 's/^mlflow==//p' constraints.txt)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
COMPOSE := docker compose --env-file infra/.env -f infra/compose.yaml
AWS_CLUSTER := infra/ray-up/aws.yaml
AUDIT := .venv-audit

.PHONY: preflight image compose-up compose-job compose-down kube-cluster kube-job kube-down aws-up aws-job aws-down audit

preflight: $(READY)  ## only the checks that every job begins with; ARGS as for run
	$(BIN)/python pipelines/preflight.py $(ARGS)

image:  ## build the images; BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 for NVIDIA's base
	docker build -f infra/Dockerfile --target ray --build-arg COMMIT=$(COMMIT) $(if $(BASE),--build-arg BASE=$(BASE)) -t $(IMAGE) .
	docker build -f infra/Dockerfile --target mlflow -t $(MLFLOW_IMAGE) .

# Drawn once and never again: a database keeps the password that it was made with.
infra/.env: | infra/.env.example
	@umask 077; while IFS= read -r line; do case "$$line" in [A-Z]*=) echo "$$line$$(openssl rand -hex 20)" ;; *) echo "$$line" ;; esac; done < infra/.env.example > $@.new && mv $@.new $@

compose-up: image infra/.env  ## on this machine: Ray, MLflow, Postgres, MinIO in containers
	$(COMPOSE) up --detach --wait

compose-job:  ## the main job there; ARGS as for run
	$(COMPOSE) exec ray-head ray job submit --address http://127.0.0.1:8265 -- python pipelines/full.py output=s3://dri-iqa/runs tracking=server tracking.uri=http://mlflow:5000 cluster.degrade_resource=0.4 $(ARGS)

compose-down:  ## end the containers; data stays in their volumes
	$(COMPOSE) down

kube-cluster:  ## on Kubernetes: a cluster that stays (KubeRay's operator must be there)
	kubectl apply -f infra/kuberay/base.yaml -f infra/kuberay/raycluster.yaml

kube-job:  ## on Kubernetes: the main job with a cluster of its own; BUCKET=name
	$(if $(BUCKET),,$(error BUCKET=name of the bucket with the data and for the results))
	kubectl apply -f infra/kuberay/base.yaml
	sed 's|s3://BUCKET|s3://$(BUCKET)|g' infra/kuberay/rayjob.yaml | kubectl apply -f -

kube-down:  ## on Kubernetes: remove both
	kubectl delete --ignore-not-found rayjob/dri-iqa-full raycluster/dri-iqa

aws-up: $(READY)  ## on AWS machines: start or update the cluster of infra/ray-up/aws.yaml
	$(BIN)/ray up --yes $(AWS_CLUSTER)

aws-job: $(READY)  ## on AWS machines: the main job there; ARGS as for run
	$(BIN)/ray exec $(AWS_CLUSTER) "cd /opt/dri-iqa && RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 -- python pipelines/full.py $(ARGS)"

aws-down: $(READY)  ## on AWS machines: end them all
	$(BIN)/ray down --yes $(AWS_CLUSTER)

$(AUDIT)/.ready: infra/audit-requirements.txt
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

audit: $(AUDIT)/.ready  ## known vulnerabilities of the pinned versions; lint of Dockerfile and compose.yaml
	$(AUDIT)/bin/hadolint infra/Dockerfile
	$(AUDIT)/bin/compose-lint infra/compose.yaml
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt
