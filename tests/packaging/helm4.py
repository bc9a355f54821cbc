"""Lints and renders a chart with the Helm 4 engine: helm4.py CHART VALUES...

Prints a list with one item for each file of values: {"lint": [...], "manifests": {template: text}}, or
{"refused": text}. One process for many, because the engine takes a second to load.
"""

import json
import sys

import helm_python


def render(chart_path, values_path):
    with open(values_path, encoding="utf-8") as file:
        values = helm_python.values_from_yaml(file.read())
    try:
        report = helm_python.lint(chart_path, values, strict=True, kube_version="v1.34.0")
        with helm_python.Chart.load(chart_path) as chart:
            chart.validate_schema(values)
            manifests = chart.render(values, name="rel", namespace="ns")
    except helm_python.HelmError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    # Severities: 1 is information.
    lint = [message for message in report["messages"] if message["severity"] > 1]
    return {"lint": lint + report["errors"], "manifests": manifests}


json.dump([render(sys.argv[1], path) for path in sys.argv[2:]], sys.stdout)
