"""Lints and renders a chart with the Helm 4 engine: helm4.py CHART VALUES.

Prints {"lint": [...], "manifests": {template: text}}; what Helm refuses goes to stderr, exit code 1.
"""

import json
import sys

import helm_python

chart_path, values_path = sys.argv[1:]
with open(values_path, encoding="utf-8") as file:
    values = helm_python.values_from_yaml(file.read())

try:
    report = helm_python.lint(chart_path, values, strict=True, kube_version="v1.34.0")
    with helm_python.Chart.load(chart_path) as chart:
        chart.validate_schema(values)
        manifests = chart.render(values, name="rel", namespace="ns")
except helm_python.HelmError as error:
    sys.exit(f"{type(error).__name__}: {error}")

# Severities: 1 is information.
lint = [message for message in report["messages"] if message["severity"] > 1]
json.dump({"lint": lint + report["errors"], "manifests": manifests}, sys.stdout)
