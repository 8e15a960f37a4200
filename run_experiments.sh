#!/usr/bin/env bash
# NSR, PSR and W_REINFORCE, each with responses of 256, 512 and 1024 tokens: nine runs, one after the other.
#
#     bash run_experiments.sh [FLAGS]      FLAGS are passed on to every run, e.g. --seed 43 or --preset tiny
#
# What is complete is skipped and what was interrupted is taken up (--resume does both), so it can simply be started again.
# Goes on after a run that failed; ends with a summary, and with exit code 1 if any run failed.
# PYTHON names the interpreter (default: python).
set -u

here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-python}
interrupted=0
failed=0
summary=()
trap 'interrupted=1' INT

for objective in NSR PSR W_REINFORCE; do
    for max_tokens in 256 512 1024; do
        name="$objective, $max_tokens tokens"
        printf '\n== %s\n' "$name"
        start=$SECONDS
        "$python" "$here/experiment.py" --objective "$objective" --max_tokens "$max_tokens" --resume "$@"
        code=$?
        case "$code" in 129 | 130 | 143) interrupted=1 ;; esac # told to end by SIGHUP, ctrl-C or SIGTERM
        if [ "$interrupted" -eq 1 ]; then
            result="interrupted"
        elif [ "$code" -eq 0 ]; then
            result="complete"
        else
            result="failed (exit code $code)"
            failed=$((failed + 1))
        fi
        summary+=("$(printf '%-24s %6d min   %s' "$name" $(((SECONDS - start) / 60)) "$result")")
        [ "$interrupted" -eq 1 ] && break 2
    done
done

printf '\n== Summary\n'
printf '%s\n' "${summary[@]}"
if [ "$interrupted" -eq 1 ]; then
    echo "Interrupted: start it again to go on."
    exit 130
fi
echo "$failed of ${#summary[@]} runs failed."
[ "$failed" -eq 0 ]
