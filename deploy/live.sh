#!/usr/bin/env bash
# Proves the monitoring in this folder against a real server and a real Prometheus: the rules, the dashboard's queries, the metrics table,
# the console page, and that routing accuracy and expected accuracy are the figures that the traffic had. Takes about a minute.
#
#     deploy/live.sh [SERVER]     # the program; default target/release/delo, else target/debug/delo
#
# Needs prometheus, jq and curl; as root on Debian or Ubuntu it installs what is missing. Where python3 has the package
# grafana-foundation-sdk, grafana/check.py runs too. DELO_LIVE_PAUSE=SECONDS keeps everything running at the end, to look at it.
set -euo pipefail
server=${1:+$(realpath "$1")}
cd "$(dirname "$0")"
if [[ -z $server ]]; then
    for server in ../target/release/delo ../target/debug/delo; do [[ -x $server ]] && break; done
    server=$(realpath "$server")
fi
[[ -x $server ]] || { echo "deploy/live.sh: $server is no program: cargo build --release, or name one" >&2; exit 1; }
data=../data/emoji-cmml

declare -A package=([prometheus]=prometheus [jq]=jq [curl]=curl)
for tool in prometheus jq curl; do
    command -v "$tool" >/dev/null && continue
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "deploy/live.sh needs $tool: install the package ${package[$tool]}" >&2
        exit 1
    fi
    apt-get update -qq
    # Only the tool is wanted, no running service.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${package[$tool]}" >/dev/null
done

scratch=$(mktemp -d)
started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 1' INT TERM
failures=0
fail() {
    echo "deploy/live.sh: $*" >&2
    failures=$((failures + 1))
}
die() {
    echo "deploy/live.sh: $*" >&2
    exit 1
}
# until_true SECONDS COMMAND...: whether the command succeeds within that time.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

: > "$scratch/server.log" > "$scratch/prometheus.log"
# A server that follows a registry and has a version in the shadow, so that the metrics of both have series. Its traces are kept by a
# collector that is away, so that exemplars name them; its decisions are recorded, and made again at the end.
partitions=$(realpath ../models/emoji-mini/partitions)
"$server" registry push "$partitions/objects.safetensors" --registry "$scratch/registry" --live >/dev/null
# Settings of the caller's environment would change what is measured.
for name in $(compgen -e | grep '^DELO_' || true); do [[ $name == DELO_LIVE_PAUSE ]] || unset "$name"; done
env -C "$scratch" DELO_SERVER__LISTEN=127.0.0.1:0 DELO_METRICS__LISTEN=127.0.0.1:0 DELO_ADMIN__LISTEN=127.0.0.1:0 DELO_HTTP__LISTEN=127.0.0.1:0 \
    DELO_REGISTRY__MANIFEST="$scratch/registry" DELO_RECORDS__FILE="$scratch/decisions.jsonl" DELO_RECORDS__PAYLOAD=true \
    DELO_TRACING__OTLP_ENDPOINT=http://127.0.0.1:9 DELO_LOGGING__FORMAT=json "$server" serve > "$scratch/server.log" 2>&1 &
delo=$!
started+=("$delo")
serving() { grep -q '"message":"serving"' "$scratch/server.log" || ! kill -0 "$delo" 2>/dev/null; }
until_true 60 serving || true
port() { jq -rR --arg port "$1" 'fromjson? | select(.message == "serving") | .[$port]' "$scratch/server.log"; }
metrics=$(port metrics) http=$(port http) admin=$(port admin) classifier=$(port classifier)
[[ -n $metrics && -n $http ]] || die "the server does not serve: $(tail -n 3 "$scratch/server.log")"
"$server" admin load "$partitions/objects.safetensors" --shadow --server "http://$admin" >/dev/null

# --- Traffic. `call METHOD` sends the JSON on stdin through the server's HTTP port.
call() { curl -sS -m 20 -H 'content-type: application/json' --data-binary @- "http://$http/delo.v1.Classifier/$1"; }
message() { # TEXT IMAGE; either may be -
    [[ $2 == - ]] || base64 -w0 "$data/images/$2" > "$scratch/image"
    [[ $2 != - ]] || : > "$scratch/image"
    jq -n --arg text "$1" --rawfile image "$scratch/image" '{} + (if $text != "-" then {text: $text} else {} end) + (if $image != "" then {image: $image} else {} end)'
}
# true task, true label, text, image: the samples of a split, the tasks in turns.
samples() { # SPLIT COUNT
    jq -r --slurpfile sessions $data/labels.json --arg split "$1" --argjson count "$2" '
        [group_by(.task_id)[] | map(select(.split == $split)) | [.[range(0; length; (length / $count | floor))]][:$count]] | transpose[][]
        | $sessions[0][.task_id] as $session | [$session.name, $session.labels[.label], (.text | join(". ")), .image] | @tsv' $data/EMOJI-CMML.json
}
outcome() { # ANSWER TRUE_TASK TRUE_LABEL; no label if it is empty
    jq --arg task "$2" --arg true_label "$3" '{requestId: (.requestId // .request_id), trueTask: $task, trueLabels: [$true_label | select(. != "")]}' <<< "$1" | call ReportOutcome
}

# A series that appears with its first event starts at 1, and increase() never sees that event (METRICS.md). So each task is chosen once,
# and that answer reported as of a task that isn't loaded, before Prometheus starts: what it measures begins after these.
tasks=$(curl -sS "http://$metrics/metrics" | sed -nE 's/^delo_partition_info\{task="([^"]*)".*/\1/p' | sort)
: > "$scratch/warm"
while IFS=$'\t' read -r _ _ text image; do
    answer=$(message "$text" "$image" | call Classify)
    task=$(jq -r .task <<< "$answer")
    if [[ $'\n'$(cut -f 1 "$scratch/warm")$'\n' != *$'\n'$task$'\n'* ]]; then
        outcome "$answer" symbols "" >/dev/null
    fi
    jq -r '[.task, .routing.probability] | @tsv' <<< "$answer" >> "$scratch/warm"
    [[ $(cut -f 1 "$scratch/warm" | sort -u) != "$tasks" ]] || break
done < <(samples train 3)
[[ $(cut -f 1 "$scratch/warm" | sort -u) == "$tasks" ]] || die "no sample was routed to one of $(xargs <<< "$tasks"): choose other samples"
outcomes_before=$(wc -w <<< "$tasks")

# The scrape configuration of this folder, by the second and with the server's own port.
sed -e 's/15s/1s/' -e "s#rules/\*.yml#$PWD/prometheus/rules/*.yml#; s/127.0.0.1:9464/$metrics/" prometheus/prometheus.yml > "$scratch/prometheus.yml"
prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/data" --web.listen-address=127.0.0.1:0 \
    --enable-feature=exemplar-storage --web.console.templates="$PWD/prometheus/consoles" --web.console.libraries="$scratch" > "$scratch/prometheus.log" 2>&1 &
prometheus=$!
started+=("$prometheus")
listening() { grep -q 'Server is ready' "$scratch/prometheus.log" || ! kill -0 "$prometheus" 2>/dev/null; }
until_true 30 listening || true
address=$(sed -nE 's/.*msg="Listening on".* address=([^ ]*).*/\1/p' "$scratch/prometheus.log" | head -n 1)
grep -q 'Server is ready' "$scratch/prometheus.log" && [[ -n $address ]] || die "Prometheus does not serve: $(tail -n 3 "$scratch/prometheus.log")"

ask() { curl -sS -m 10 --get "http://$address/api/v1/query" --data-urlencode "query=$1"; }
# The value of a query that has one series; empty if it has none.
figure() { ask "$1" | jq -r '.data.result[0].value[1] // empty'; }
scraped() { [[ $(figure 'max(up{job="delo"})') == 1 ]]; }
until_true 15 scraped || die "Prometheus scrapes no metrics of http://$metrics"
sleep 2

begun=$SECONDS
number=0
while IFS=$'\t' read -r true_task label text image; do
    number=$((number + 1))
    # Complete, text alone, complete, picture alone; every seventh sample through delo's own client.
    case $((number / 8 % 4)) in
        1) image=- ;;
        3) text=- ;;
    esac
    if ((number % 7 == 0)); then
        arguments=()
        [[ $text == - ]] || arguments+=(--text "$text")
        [[ $image == - ]] || arguments+=(--image "$data/images/$image")
        answer=$("$server" classify --server "http://$classifier" --json "${arguments[@]}")
    else
        answer=$(message "$text" "$image" | call Classify)
    fi
    # Of a label that is reported wrong on purpose, the answer must say so too.
    ((number % 10 != 0)) || label=$(jq -r --arg true_label "$label" '[.scores[1].label, .scores[0].label] | map(select(. != $true_label))[0]' <<< "$answer")
    told=$(outcome "$answer" "$true_task" "$label")
    jq -r --arg true_task "$true_task" --argjson told "$told" '[.task, $true_task, (.task == $true_task), (.routing.probability // "none"),
        $told.taskCorrect, $told.labelCorrect, $told.counted] | @tsv' <<< "$answer" >> "$scratch/answers"
    sleep 0.15
done < <(samples test 8)
# A sample that is rejected, a call without a sample, and a call that is no gRPC.
rejected=$(jq -n '{text: "hammer", reject: 1}' | call Classify)
[[ $(jq .routing.rejected <<< "$rejected") == true ]] || fail "a sample below the typicality it asks for is not rejected: $rejected"
jq -n --argjson answer "$rejected" '{requestId: $answer.requestId, trueTask: "symbols"}' | call ReportOutcome >/dev/null
[[ $(jq -n '{}' | call Classify | jq -r .code) == invalid_argument ]] || fail "a call without a sample is not refused"
curl -sS -m 5 -o /dev/null --http2-prior-knowledge -H 'content-type: text/plain' -d nothing "http://$classifier/delo.v1.Classifier/Classify"
while ((SECONDS < begun + 20)); do sleep 0.5; done
# The rules need two more evaluations than the scrape, as some read what others record.
counted() { [[ $(figure "$1") == "$2" ]]; }
until_true 20 counted 'sum(delo_routing_outcomes_total)' $((number + outcomes_before)) || fail "the outcomes that were reported are not counted"
sleep 3

# --- What the answers say, and what Prometheus says of them.
# A rejected sample has a probability too, but no outcome of routing.
read -r count right expected labels_right < <(awk -F '\t' -v rejected="$(jq .routing.probability <<< "$rejected")" '
    { right += $3 == "true"; sum += $4; labels += $6 == "true" } END { print NR, right, (sum + rejected) / (NR + 1), labels }' "$scratch/answers")
[[ $(awk -F '\t' '$3 != $5 || $7 != "true"' "$scratch/answers") == "" ]] || fail "ReportOutcome contradicts the data set, or counts not: $(awk -F '\t' '$3 != $5 || $7 != "true"' "$scratch/answers" | head -n 3)"
close() { # WHAT FOUND EXPECTED TOLERANCE
    awk -v found="${2:-nan}" -v expected="$3" -v tolerance="$4" 'BEGIN { d = found - expected; exit !(found != "nan" && d <= tolerance && -d <= tolerance) }' ||
        fail "$1 is ${2:-absent}, and should be $3"
}
fraction=$(awk "BEGIN { print $right / $count }")
labels_fraction=$(awk "BEGIN { print $labels_right / $count }")
routing=$(figure 'job:delo_routing_accuracy:ratio_1h{job=~".*"}')
probability=$(figure 'job:delo_routing_expected_accuracy:ratio_1h{job=~".*"}')
label_accuracy=$(figure 'job:delo_label_accuracy:ratio_1h{job=~".*"}')
# increase() extrapolates each series by itself, so ratios of them are close, not equal.
close "routing accuracy of the dashboard" "$routing" "$fraction" 0.005
close "expected accuracy of the dashboard" "$probability" "$expected" 0.005
close "label accuracy of the dashboard" "$label_accuracy" "$labels_fraction" 0.005
# The counters themselves are equal, the outcomes before the measurement included.
close "the sum of delo_routing_outcomes_total" "$(figure 'sum(delo_routing_outcomes_total)')" $((count + outcomes_before)) 0
total=$(awk -F '\t' '{ sum += NF == 2 ? $2 : $4 } END { print sum }' "$scratch/warm" "$scratch/answers")
close "the sum of probabilities" "$(figure 'sum(delo_routing_probability_sum)')" "$(awk "BEGIN { print $total + $(jq .routing.probability <<< "$rejected") }")" 0.001
while IFS=$'\t' read -r task true_task often; do
    close "outcomes of $true_task routed to $task" "$(figure "sum(delo_routing_outcomes_total{true_task=\"$true_task\", routed_task=\"$task\", true_task_loaded=\"\"})")" "$often" 0
done < <(cut -f 1,2 "$scratch/answers" | grep -vP '\tsymbols$' | sort | uniq -c | sed -E 's/^ *([0-9]+) (.*)/\2\t\1/')

# --- Rules: all of them loaded and healthy, and nothing fires of a healthy server.
curl -sS "http://$address/api/v1/rules" | jq -c '.data.groups[].rules[]' > "$scratch/rules"
while read -r rule; do fail "a rule is not healthy: $rule"; done < <(jq -r 'select(.health != "ok" or (.lastError // "") != "") | "\(.name): \(.health) \(.lastError)"' "$scratch/rules")
recording=$(jq -r 'select(.type == "recording") | .name' "$scratch/rules" | sort)
alerting=$(jq -r 'select(.type == "alerting") | .name' "$scratch/rules" | sort)
[[ $recording == "$(sed -n 's/^ *- record: *//p' prometheus/rules/*.yml | sort)" ]] || fail "Prometheus has not loaded every recording rule"
[[ $alerting == "$(sed -n 's/^ *- alert: *//p' prometheus/rules/*.yml | sort)" ]] || fail "Prometheus has not loaded every alert"
firing=$(jq -r 'select(.type == "alerting" and .state == "firing") | .name' "$scratch/rules" | xargs)
[[ -z $firing ]] || fail "of a healthy server fires: $firing"
# No recorded series is excused. Those over a day take the minute that there is, and the samples of the task that isn't loaded are the confused pairs.
for name in $recording; do
    [[ $(figure "count($name == $name)") -ge 1 ]] || fail "$name has no series"
done

# --- Metrics: every one of the table has a series, and every one that is served is in the table.
documented=$(sed -n 's/^| `\([a-z_]*\)` |.*/\1/p' METRICS.md)
for name in $documented; do
    [[ $(figure "count({__name__=~\"${name}(_count)?\", job=\"delo\"})") -ge 1 ]] || fail "$name of METRICS.md has no series"
done
for name in $(curl -sS "http://$metrics/metrics" | sed -n 's/^# TYPE \([a-z_]*\) .*/\1/p'); do
    case $name in
        # Of address space, at which no rule and no panel looks.
        process_virtual_memory_bytes | process_virtual_memory_max_bytes) ;;
        *) grep -qxF "$name" <<< "$documented" || fail "$name is served but not in METRICS.md" ;;
    esac
done

# --- Exemplars: slow calls name their traces.
exemplars=$(curl -sS --get "http://$address/api/v1/query_exemplars" --data-urlencode 'query=delo_request_duration_seconds_bucket' \
    --data-urlencode "start=$(($(date +%s) - 600))" --data-urlencode "end=$(date +%s)" | jq '[.data[]?.exemplars[].labels.trace_id | select(length == 32)] | length')
[[ ${exemplars:-0} -ge 1 ]] || fail "Prometheus has no exemplar of a call's duration"

# --- The dashboard: each query is accepted, with what Grafana would put for its variables.
accepted=0 silent=()
while read -r query; do
    reply=$(ask "$query")
    if [[ $(jq -r .status <<< "$reply") == success ]]; then accepted=$((accepted + 1)); else fail "the dashboard's query $query: $(jq -r .error <<< "$reply")"; fi
    [[ $(jq '.data.result | length' <<< "$reply") != 0 ]] || silent+=("$query")
done < <(jq -r '[.. | objects | .expr? // empty | strings] | unique[]' grafana/delo.json |
    sed -e 's/\$__rate_interval/1m/g; s/\$__interval/1m/g; s/\$__range/1h/g; s/\$\(job\|instance\)/.*/g')
# Without TLS no certificate expires. The annotation marks loads of partitions, and those here were before Prometheus started.
for query in "${silent[@]}"; do
    case $query in
        *delo_tls_certificate_expiry_timestamp_seconds*) ;;
        "changes(delo_partition_load_seconds_count"*) ;;
        *) fail "the dashboard's query has no answer: $query" ;;
    esac
done
while read -r query; do
    metric=$(sed -E 's/^label_values\(([a-z_]+).*/\1/' <<< "$query") label=$(sed -E 's/.*, *([a-z_]+)\)$/\1/' <<< "$query")
    [[ $(curl -sS --get "http://$address/api/v1/label/$label/values" --data-urlencode "match[]=$metric" | jq '.data | length') -ge 1 ]] || fail "the dashboard's variable has no value: $query"
done < <(jq -r '.templating.list[].query | objects | .query' grafana/delo.json)
schema="not checked (pip install grafana-foundation-sdk)"
if python3 -c 'import grafana_foundation_sdk' 2>/dev/null; then
    schema=$(python3 grafana/check.py) || fail "a dashboard does not fit Grafana's types"
fi

# --- The console page: it answers, with figures, and with the dashboard's.
status=$(curl -sS -o "$scratch/console.html" -w '%{http_code}' "http://$address/consoles/delo.html")
[[ $status == 200 ]] || fail "the console page answers $status: $(head -c 300 "$scratch/console.html")"
[[ $(grep -oE '<td[^>]*>–</td>|NaN' "$scratch/console.html" | wc -l) == 0 ]] || fail "figures are missing in the console page: $(grep -nE '>–<|NaN' "$scratch/console.html" | head -n 5)"
for task in $tasks; do grep -q "<td>$task</td>" "$scratch/console.html" || fail "the console page has no row of $task"; done
shown() { sed -nE "s/.*id=\"$1\">([0-9.]+) %<.*/\1/p" "$scratch/console.html"; }
close "routing accuracy of the console page, in per cent" "$(shown routing-accuracy)" "$(awk "BEGIN { print 100 * $fraction }")" 0.5
close "expected accuracy of the console page, in per cent" "$(shown expected-accuracy)" "$(awk "BEGIN { print 100 * $expected }")" 0.5
if [[ -n ${DELO_LIVE_PAUSE:-} ]]; then
    echo "Prometheus http://$address, console http://$address/consoles/delo.html, metrics http://$metrics/metrics" >&2
    sleep "$DELO_LIVE_PAUSE"
fi

# --- The server ends: the alert of a server that is down begins to wait.
kill "$delo"
wait "$delo" || fail "the server ends with $?"
down() { [[ $(curl -sS "http://$address/api/v1/alerts" | jq -r '.data.alerts[] | select(.labels.alertname == "DeloDown") | .state') == pending ]]; }
until_true 10 down || fail "DeloDown is not pending although the server has gone"

# --- Its decisions, made again by the same partitions, are the same, and the recorded ones as right as the answers were.
replayed=$("$server" replay "$scratch/decisions.jsonl" --json --fail-below 1) || fail "decisions that are made again differ: $(jq -c '.moves, .failures' <<< "$replayed")"
# Those before the measurement were reported as of a task that is not loaded, as the rejected one was.
close "routing accuracy of the recorded decisions" "$(jq .task_right.recorded <<< "$replayed")" "$(awk "BEGIN { print $right / ($count + $outcomes_before + 1) }")" 0.00001

[[ $failures == 0 ]] || { echo "deploy/live.sh: $failures checks fail" >&2; exit 1; }
printf 'live: %d recording rules and %d alerts healthy, %d metrics, %d dashboard queries, %d exemplars, %d decisions made again; %d outcomes: routing accuracy %.2f %% (answers %.2f), expected %.2f %% (answers %.2f), labels %.2f %% (answers %.2f); schema %s\n' \
    "$(wc -w <<< "$recording")" "$(wc -w <<< "$alerting")" "$(wc -w <<< "$documented")" "$accepted" "$exemplars" "$(jq .replayed <<< "$replayed")" "$count" \
    "$(awk "BEGIN { print 100 * $routing }")" "$(awk "BEGIN { print 100 * $fraction }")" "$(awk "BEGIN { print 100 * $probability }")" "$(awk "BEGIN { print 100 * $expected }")" \
    "$(awk "BEGIN { print 100 * $label_accuracy }")" "$(awk "BEGIN { print 100 * $labels_fraction }")" "$schema"
