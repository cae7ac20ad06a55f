#!/usr/bin/env bash
# Holds this folder to itself: rules, their unit tests, the scrape configuration, the dashboard's queries, the metrics table, the runbook.
# Needs promtool and jq; as root on Debian or Ubuntu it installs what is missing.
set -euo pipefail
cd "$(dirname "$0")"

declare -A package=([promtool]=prometheus [jq]=jq)
for tool in promtool jq; do
    command -v "$tool" >/dev/null && continue
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "deploy/check.sh needs $tool: install the package ${package[$tool]}" >&2
        exit 1
    fi
    apt-get update -qq
    # Only the tool is wanted, no running service.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${package[$tool]}" >/dev/null
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
fail() {
    echo "deploy/check.sh: $*" >&2
    failures=$((failures + 1))
}

promtool check config prometheus/prometheus.yml
promtool check config --syntax-only compose/prometheus.yml
promtool test rules prometheus/tests/*.yml

# The dashboard's queries as rules, Grafana's variables replaced by what Grafana would put there.
for dashboard in grafana/*.json; do
    jq -r '[.. | objects | .expr? // empty | strings] | unique[]' "$dashboard" |
        sed -e 's/\$__rate_interval/1m/g; s/\$__interval/1m/g; s/\$__range/1h/g; s/\$\(job\|instance\)/.*/g' > "$scratch/queries"
    [[ -s $scratch/queries ]] || fail "$dashboard holds no query"
    jq -Rn '{groups: [{name: "dashboard", rules: [inputs | {record: "panel:query:\(input_line_number)", expr: .}]}]}' \
        < "$scratch/queries" > "$scratch/dashboard.yml"
    promtool check rules "$scratch/dashboard.yml" || fail "$dashboard: a query does not parse"
    cat "$scratch/queries" >> "$scratch/expressions"
    jq -r '.templating.list[].query | if type == "object" then .query else empty end' "$dashboard" >> "$scratch/expressions"
    repeated=$(jq -r '.panels[].id' "$dashboard" | sort | uniq -d)
    [[ -z $repeated ]] || fail "$dashboard: several panels have the id $repeated"
done

# Every name in a query is in the table of metrics or recorded by a rule, and every metric of the table is used.
recorded=$(sed -n 's/^ *- record: *//p' prometheus/rules/*.yml | sort)
[[ -z $(uniq -d <<< "$recorded") ]] || fail "recorded twice: $(uniq -d <<< "$recorded")"
documented=$(sed -n 's/^| `\([a-z_]*\)` |.*/\1/p' METRICS.md)
grep -v '^ *#' prometheus/rules/*.yml >> "$scratch/expressions"
histograms=$(sed -n 's/^| `\([a-z_]*\)` | histogram |.*/\1/p' METRICS.md)
names=$(grep -ohE '[a-z_]+:delo_[a-z_]+:[a-z0-9_]+|\b(delo|process)_[a-z_]+\b' "$scratch/expressions" | sort -u)
known() {
    grep -qxF "$1" <<< "$documented" || grep -qxF "$1" <<< "$recorded" || grep -qxF "${1%_bucket}" <<< "$histograms" ||
        grep -qxF "${1%_sum}" <<< "$histograms" || grep -qxF "${1%_count}" <<< "$histograms"
}
groups=$(sed -n 's/^ *- name: *//p' prometheus/rules/*.yml)
for name in $names; do
    known "$name" || grep -qxF "$name" <<< "$groups" || fail "$name is neither in METRICS.md nor recorded"
done
for name in $documented; do
    grep -qE "\b${name}(_bucket|_sum|_count)?\b" "$scratch/expressions" || fail "$name is in METRICS.md but no rule or panel uses it"
done

# Every alert has a unit test and a section in the runbook, and the other way round.
alerts=$(sed -n 's/^ *- alert: *//p' prometheus/rules/*.yml | sort)
sections=$(sed -n 's/^## //p' RUNBOOK.md | sort)
[[ $alerts == "$sections" ]] || fail "alerts and sections of RUNBOOK.md differ: $(comm -3 <(echo "$alerts") <(echo "$sections") | xargs)"
for alert in $alerts; do
    grep -q "RUNBOOK.md#${alert,,}\"" prometheus/rules/alerts.yml || fail "$alert points to no section of the runbook"
    grep -q "alertname: $alert\$" prometheus/tests/*.yml || fail "$alert has no unit test"
done

[[ $failures == 0 ]] || exit 1
echo "deploy: $(wc -w <<< "$recorded") recording rules, $(wc -w <<< "$alerts") alerts, $(wc -l < "$scratch/queries") queries of the dashboard hold"
