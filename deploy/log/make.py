"""Writes docs/log.md: every event that the code logs, its levels and fields as the code has them, and its meaning."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edged.log_limit import BURST, OF_JOBS, PER_SECOND

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/log.md"
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
"""By the method that logs."""

MEANINGS = {
    "all_logits_computed": "the package's graph cannot be edited so that it computes the logits of wanted tokens alone",
    "batches_round_differently": "a batch of rows gives other bits than each row alone, whatever edged does",
    "bits_not_kept": "what was measured of a package's bits cannot be written down",
    "board_limited": "the board is near a limit, and edged holds jobs back",
    "board_throttled": "the board has begun to slow itself down",
    "board_unlimited": "jobs are no longer held back",
    "cancel_rejected": "a cancel message has no usable id",
    "chunks_round_differently": "a prompt gives other bits where it is split, whatever edged does",
    "command_begins": "a command that came over MQTT begins",
    "command_ended": "it has ended; `status` is what was answered",
    "command_memory_refused": "the file of the commands that came is damaged",
    "command_not_kept": "the file of the commands that came cannot be written; no command runs meanwhile",
    "command_refused": "a command does not run, and why",
    "crashed_before": "the last process died while these jobs ran",
    "deadline_not_judged": "a job's deadline was not judged, because the clock is not synchronised",
    "desired_refused": "a desired document is not followed, and why",
    "discovery_not_noted": "the topic of the document for Home Assistant cannot be written down",
    "document_too_large": "the broker does not take a retained document, or only without some of its fields",
    "drain_cut_short": "running jobs did not finish within `drain_seconds`; they run again after the next start",
    "draining": "the daemon is told to end and lets running jobs finish",
    "energy_day_not_kept": "the energy of the last 24 hours cannot be written down",
    "energy_day_refused": "the file with the energy of the last 24 hours is damaged",
    "engine_command_failed": "a fault of edged's own in a command to the engine; it costs one request at most",
    "engine_ended": "the engine's thread has ended; the process ends too",
    "engine_request_failed": "a fault of edged's own in one request, which fails",
    "engine_step_failed": "a step of the model failed: its jobs run again alone, or fail",
    "expired_job_ignored": "the broker delivered a job whose message had expired",
    "exporting": "`edged export` serves",
    "gpu_memory_unknown": "the free memory of the GPU cannot be read",
    "grammars_ready": "structured answers can be served; the trie of the vocabulary was built",
    "group_joined": "the device takes the jobs of its group again",
    "group_kept": "the device cannot serve and stays in its groups, because no other device is known to serve",
    "group_left": "the device cannot serve and leaves its group to others",
    "group_model_not_recorded": "the model whose group topic is subscribed cannot be written down",
    "job_accepted": "a job is on disk and was accepted",
    "job_conflict": "a job came with the id of another one",
    "job_dropped": "a job at QoS 0 came while there was no place",
    "job_give_refused": "another device of the group does not take a waiting job; it stays here",
    "job_give_unanswered": "another device of the group did not say whether it has a waiting job, which stays here",
    "job_given": "another device of the group has taken a waiting job",
    "job_taken": "a waiting job of another device of the group was taken",
    "job_taken_anew": "a job that was given away came again, and the device that had it is silent or does not know it",
    "job_ended": "an accepted job ended without an answer: failed, cancelled or expired",
    "job_of_newer_version": "a job in the spool asks for what only a newer edged serves; it waits",
    "job_rejected": "a job was not taken",
    "job_succeeded": "a job has its answer",
    "job_unpreparable": "a fault of edged's own while a prompt was prepared; the job fails",
    "job_unreadable": "a fault of edged's own while a job was read; it is rejected or fails",
    "jobs_dropped": "jobs at QoS 0 were lost with the connection",
    "jobs_recovered": "jobs of the last run wait in the spool",
    "kept_bits_refused": "what is remembered of a package's bits is damaged, and measured again",
    "kept_manifest_refused": "a kept manifest is damaged, and made again",
    "kv_cache_as_published": "an int8 KV cache cannot be had",
    "kv_scales_kept": "the scales of the int8 KV cache are on disk",
    "kv_scales_measured": "the scales of the int8 KV cache were measured",
    "kv_scales_not_kept": "the scales of the int8 KV cache cannot be written down",
    "kv_scales_refused": "kept scales of the int8 KV cache are damaged or of another package, and measured again",
    "lone_rows_padded": "this processor rounds a single row otherwise, so a second one is computed with it",
    "manifest_kept": "a manifest was made for a package without one",
    "manifest_not_kept": "a manifest cannot be made or written down",
    "max_stall_exceeded": "a chunk of a prompt took longer than `model.max_stall`",
    "memory_swapped_to_card": "memory is swapped to the card",
    "model_corrupt": "a file of the package has changed since its manifest was made; it is not served",
    "model_is_demo": "no package is chosen; the demo model is served",
    "model_not_verified": "the package has no known answers",
    "model_serving": "the model is loaded and serves",
    "model_unavailable": "the package cannot be served",
    "model_verified": "the package gave its known answers",
    "mqtt_back_to_preferred": "`mqtt.host` is reachable again, and the device goes back to it",
    "mqtt_connected": "a connection stands; further fields are limits that the broker announced",
    "mqtt_connection_crashed": "a fault of edged's own in a connection's thread, which starts again",
    "mqtt_connection_failed": "an attempt to connect failed; once for each reason",
    "mqtt_device_id_free": "the other device with this id has left",
    "mqtt_device_id_taken": "another device uses this device's id",
    "mqtt_disconnected": "a connection that stood was lost",
    "mqtt_fallback": "the device is connected to one of `mqtt.fallbacks`",
    "mqtt_group_check_inconclusive": "whether the broker delivers to groups is not known",
    "mqtt_group_left": "the broker held a subscription to a group that is no longer configured; it was ended",
    "mqtt_model_left": "the broker held a subscription to the group topic of another model; it was ended",
    "mqtt_not_delivered": "the broker grants a subscription and delivers nothing there, or on another topic",
    "mqtt_promise_broken": "the broker does not let edged keep a promise of the contract",
    "mqtt_properties_unreadable": "the properties of a message are malformed",
    "mqtt_protocol_fallback": "the broker does not speak MQTT 5; 3.1.1 is used",
    "mqtt_sessions_not_kept": "`sessions.json` cannot be written",
    "mqtt_subscription_refused": "the broker refuses a subscription",
    "mqtt_unexpected_topic": "the broker delivered a message on a topic that nobody subscribed to",
    "mqtt_will_refused": "the broker refuses the last will, and the device connects with a lesser one",
    "notice_dropped": "more events and rejections wait for the broker than are kept; the oldest is dropped",
    "notice_refused": "the broker refuses an event or a rejection",
    "package_fault": "a file of the package lacks a fact or contradicts another",
    "pinned_instruction_given_up": "a pinned instruction crashed the process three times",
    "pinned_instruction_refused": "a pinned instruction cannot be computed",
    "power_budget_not_kept": "a power budget is set and the power is not known",
    "prefix_file_not_removed": "a file of the prefix cache cannot be removed",
    "prefix_file_refused": "a file of the prefix cache is damaged or of another model, and was removed",
    "prefix_folder_unusable": "the folder of the prefix cache cannot be used",
    "prefix_not_written": "a prefix was not written to disk: no room, or the day's writes are used up",
    "prefix_store_failed": "a fault of edged's own in the thread of the prefix cache on disk",
    "prefix_write_failed": "a prefix cannot be written to disk",
    "prompts_split_coarsely": "this package's prompts may be split at multiples of some tokens only",
    "publication_deferred": "the broker refuses a publication for the moment; it is sent again",
    "reload_refused": "the new settings are wrong; the daemon continues with the old ones",
    "reloading": "the daemon ends its jobs to start again with new settings",
    "repeat_not_forwarded": "too many repeats of jobs that were given away wait for an answer; senders come again",
    "reply_refused": "the broker refuses a reply, and its waiter is given up",
    "result_refused": "the broker refuses a result; it is kept and sent again",
    "result_too_large": "a result is too large for the broker, and a small one takes its place",
    "retained_cancel_ignored": "a cancel message was retained",
    "retained_job_ignored": "a job message was retained",
    "remote_setting_overridden": "the environment or a flag sets what a rollout set too",
    "remote_settings_left_out": "what rollouts set does not fit the board's own settings, so none of it holds",
    "remote_settings_refused": "the file of the settings that rollouts set is damaged",
    "rollout_failed": "a rollout has ended without its package",
    "rollout_memory_refused": "the file with what a rollout has done is damaged",
    "rollout_not_kept": "what a rollout has done cannot be written, or its package not be put in its place",
    "rollout_not_resumed": "a rollout that a restart interrupted cannot go on yet",
    "rollout_pull_failed": "a rollout cannot fetch its package; it tries again",
    "rollout_speed_not_compared": "the speed of the package before cannot be measured, so any of the new one will do",
    "rollout_state": "a rollout has come to another state or step",
    "rollout_waits_for_clock": "a rollout that needs the time of day waits for the clock to be synchronised",
    "runtime_from_wheel": "onnxruntime comes from `model.runtime_wheels`",
    "runtime_wheels_refused": "the wheel in `model.runtime_wheels` cannot be used",
    "scrub_ended": "the package was replaced or removed, so its check ends until the next load",
    "scrub_found_damage": "a block of the package on disk is not as its manifest says",
    "scrub_passed": "all of the package was read from the disk and is right",
    "scrub_read_failed": "a block of the package cannot be read at the moment",
    "search_entries_unheeded": "the package's `search` has entries that edged does not apply",
    "sensor_failed": "a fault of edged's own in a sensor; the others continue",
    "session_lost": "onnxruntime's session no longer works, and the model is loaded again",
    "speculation_off": "no answer is guessed ahead here, though the settings ask for it, and why",
    "speed_not_kept": "this board's best speed cannot be written down",
    "speed_refused": "the file with this board's best speed is damaged",
    "share_message_refused": "a message of another device of the group about waiting jobs is not as it must be",
    "shared_job_unreadable": "a job that another device gives cannot be read or served by this version; it stays there",
    "splits_not_probed": "where prompts may be split cannot be measured",
    "spool_damaged": "the spool is damaged; the daemon restarts to recover it",
    "spool_fault": "the spool cannot be written or read",
    "spool_full": "`jobs.max_queued` jobs are on board; further ones wait at the broker",
    "spool_mended": "the spool can be written again",
    "spool_recovered": "a damaged spool was set aside, and its whole rows were taken over",
    "starting": "the daemon starts",
    "state_dir_volatile": "`state_dir` is in memory or on a read-only disk",
    "stopped": "the daemon has ended",
    "systemd_not_told": "systemd's socket does not take a message",
    "thread_stuck": "a thread takes too long or has ended; the process ends itself",
    "waiter_not_kept": "a job has too many waiters; this one hears the result topic",
}

HEAD = f"""# Log

Every event that edged logs. Names and fields stay as they are; a change of one is in CHANGELOG.md. Each line also has
`event`, `level` and `timestamp`. `log.format` sets its form; in the journal each field is a field of the entry:
`journalctl -u edged EDGED_EVENT=job_succeeded`. No line has text of a prompt or an answer.
[operating.md](operating.md) has a row for each warning and error: what edged does, and what you do.

At `info` a job costs two lines: `job_accepted`, and `job_succeeded` or `job_ended`. One that is not taken costs one,
`job_rejected`.

A storm of one event is cut: {BURST} lines of it are written at once, and {PER_SECOND} in each further second. The next
line of that event says in `suppressed` how many were not written before it; when the storm is over, its last line is
written with that number. {", ".join(f"`{name}`" for name in sorted(OF_JOBS))} are never cut. `edged_faults_total`
counts all warnings and errors, written or not.

This page is written by `deploy/log/make.py`.
"""


@dataclass
class Event:
    """One event: the levels at which it is logged, the most serious first, and its fields."""

    levels: set[str] = field(default_factory=set)
    fields: dict[str, None] = field(default_factory=dict)


def events() -> dict[str, Event]:
    """Every event of the code, by name."""
    found: dict[str, Event] = {}
    for path in sorted((ROOT / "edged").rglob("*.py")):
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            assert isinstance(call.args[0], ast.Constant), f"{path}: {ast.unparse(call)} has no name of its own"
            event = found.setdefault(call.args[0].value, Event())
            assert isinstance(call.func, ast.Attribute)
            event.levels.add(LEVELS[call.func.attr])
            event.fields |= dict.fromkeys(keyword.arg or "…" for keyword in call.keywords if keyword.arg != "exc_info")
    return dict(sorted(found.items()))


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr in LEVELS and ast.unparse(node.func.value) in ("log", "_log"):
            yield node


def page(found: dict[str, Event]) -> str:
    """The page as it should be."""
    parts = [HEAD]
    for level in ("error", "warning", "info", "debug"):
        rows = [
            f"| `{name}` | {' '.join(f'`{one}`' if one != '…' else one for one in event.fields)} | {MEANINGS[name]} |\n"
            for name, event in found.items()
            if level in event.levels
        ]
        if rows:
            parts.append(f"\n## {level}\n\n| event | fields | |\n|---|---|---|\n{''.join(rows)}")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(events()), encoding="utf-8")
