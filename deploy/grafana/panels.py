"""Panels and dashboards in Grafana's JSON model."""

from __future__ import annotations

from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
BOARD = 'instance="$instance"'
WIDTH = 24
"""Columns of a dashboard."""
GOOD_BAD = ({"color": "green", "value": None}, {"color": "red", "value": 1})
BAD_GOOD = ({"color": "red", "value": None}, {"color": "green", "value": 1})

STAT = {
    "justifyMode": "auto",
    "orientation": "auto",
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "textMode": "auto",
    "percentChangeColorMode": "standard",
    "showPercentChange": False,
    "wideLayout": True,
}

Panel = dict[str, Any]


def query(expr: str, legend: str = "__auto", *, table: bool = False) -> dict[str, Any]:
    """A target of a panel; `table`: the value now, as rows."""
    kind = {"instant": True, "range": False, "format": "table"} if table else {"instant": False, "range": True}
    return {"datasource": SOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend, **kind}


def panel(kind: str, title: str, queries: list[dict[str, Any]], about: str = "", **more: Any) -> Panel:
    """A panel without its place; queries are named A, B, C …"""
    targets = [{**one, "refId": chr(ord("A") + at)} for at, one in enumerate(queries)]
    return {"type": kind, "title": title, "description": about, "datasource": SOURCE, "targets": targets, **more}


def field(unit: str, steps: tuple[dict[str, Any], ...] = (), **more: Any) -> dict[str, Any]:
    """What all values of a panel have in common."""
    defaults: dict[str, Any] = {"unit": unit, **more}
    if steps:
        defaults |= {"thresholds": {"mode": "absolute", "steps": list(steps)}, "color": {"mode": "thresholds"}}
    return {"defaults": defaults, "overrides": []}


def graph(title: str, unit: str, *queries: dict[str, Any], about: str = "", stack: bool = False) -> Panel:
    """Lines over time."""
    custom = {"lineWidth": 1, "fillOpacity": 40 if stack else 8, "showPoints": "never", "spanNulls": False}
    custom["stacking"] = {"mode": "normal" if stack else "none", "group": "A"}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel(
        "timeseries", title, list(queries), about, fieldConfig=field(unit, min=0, custom=custom), options=options
    )


def number(title: str, unit: str, expr: str, steps: tuple[dict[str, Any], ...] = (), about: str = "") -> Panel:
    """The value now, large."""
    options = {**STAT, "colorMode": "background" if steps else "none", "graphMode": "none" if steps else "area"}
    return panel("stat", title, [query(expr)], about, fieldConfig=field(unit, steps), options=options)


def word(title: str, expr: str, legend: str) -> Panel:
    """A label of an info metric, as text."""
    options = {**STAT, "colorMode": "none", "graphMode": "none", "textMode": "name"}
    return panel("stat", title, [query(expr, legend)], fieldConfig=field("none"), options=options)


def states(title: str, *queries: dict[str, Any], about: str = "") -> Panel:
    """0 and 1 over time, as coloured bars: 1 is bad."""
    words = {"0": {"text": "no", "color": "green", "index": 0}, "1": {"text": "yes", "color": "red", "index": 1}}
    config = field("none", GOOD_BAD, mappings=[{"type": "value", "options": words}], custom={"fillOpacity": 80})
    options = {
        "mergeValues": True,
        "showValue": "never",
        "alignValue": "left",
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel("state-timeline", title, list(queries), about, fieldConfig=config, options=options)


def table(title: str, columns: dict[str, tuple[str, str]], link: str, about: str = "") -> Panel:
    """A row for each instance; `columns`: unit and query by title. `link`: where the instance's name leads."""
    names = [chr(ord("A") + at) for at in range(len(columns))]
    renamed = {f"Value #{name}": title for name, title in zip(names, columns, strict=True)}
    keep = {"instance": 0, **{f"Value #{name}": at for at, name in enumerate(names, 1)}}
    overrides = [
        {"matcher": {"id": "byName", "options": title}, "properties": [{"id": "unit", "value": unit}]}
        for title, (unit, _) in columns.items()
    ]
    jump = [{"title": "This board", "url": link}]
    overrides.append(
        {"matcher": {"id": "byName", "options": "instance"}, "properties": [{"id": "links", "value": jump}]}
    )
    return panel(
        "table",
        title,
        [query(expr, table=True) for _, expr in columns.values()],
        about,
        fieldConfig={
            "defaults": {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}},
            "overrides": overrides,
        },
        options={
            "frameIndex": 0,
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": "Ready", "desc": False}],
        },
        transformations=[
            {"id": "joinByField", "options": {"byField": "instance", "mode": "outer"}},
            {"id": "filterFieldsByName", "options": {"include": {"names": list(keep)}}},
            {"id": "organize", "options": {"indexByName": keep, "renameByName": renamed, "excludeByName": {}}},
        ],
    )


def dashboard(uid: str, title: str, about: str, rows: list[tuple[str, int, list[Panel]]], *variables: Any) -> Any:
    """`rows`: a heading, the height of its panels, and the panels, four a line at most."""
    panels: list[Panel] = []
    top = 0
    for heading, height, group in rows:
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": place})
        top += 1
        each = WIDTH // min(len(group), 6 if height <= 4 else 3)
        for at, one in enumerate(group):
            line, column = divmod(at, WIDTH // each)
            panels.append({**one, "gridPos": {"x": column * each, "y": top + line * height, "w": each, "h": height}})
        top += -(-len(group) * each // WIDTH) * height
    for number_, one in enumerate(panels, 1):
        one["id"] = number_
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "hide": 0}
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["edged"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "templating": {"list": [source, *variables]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }
