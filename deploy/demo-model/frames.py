"""The words of the demo model's tasks: sentence frames, names, instructions, and which of them are held out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frames:
    """Sentence frames of one meaning; those held out never occur in training."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


# --- How a task is told ---------------------------------------------------------------------------------------------

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "log": (
        "Log line to JSON",
        "Turn this log line into JSON",
        "Convert the log line to JSON",
        "Parse this log line",
        "Classify this log line",
        "Extract severity, component and action",
        "Log",
    ),
    "command": (
        "Command to JSON",
        "Turn this command into JSON",
        "Convert the spoken command to JSON",
        "Parse this command",
        "Voice command to JSON",
        "Extract intent, target and value",
        "Command",
    ),
    "korean": (
        "Translate to Korean",
        "Translate this status to Korean",
        "Translate the device status into Korean",
        "Status in Korean",
        "Korean translation",
        "To Korean",
        "한국어로 번역",
    ),
}

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are edged, a small model on a device.",
    "Answer briefly.",
    "You are a device assistant. Answer with nothing but the result.",
    "You are a careful AI assistant that runs on a Raspberry Pi.",
)

# --- Log lines ------------------------------------------------------------------------------------------------------

LEVELS: dict[str, tuple[str, ...]] = {
    "debug": ("debug", "dbg", "trace"),
    "info": ("info", "notice"),
    "warning": ("warn", "warning"),
    "error": ("error", "err"),
    "critical": ("crit", "critical", "fatal", "emerg", "alert"),
}

LOG_LAYOUTS = Frames(
    trained=(
        "{ts} {level} {name}: {event}",
        "{ts} [{level}] {name}: {event}",
        "[{level}] {name} - {event}",
        "{level} {name} {event}",
        "{level}: {name}: {event}",
        "{name}[{pid}]: {level}: {event}",
        "{ts} {name}[{pid}]: {event} ({level})",
        "{ts} {name} {level} {event}",
        'level={level} component={name} msg="{event}"',
        "ts={ts} level={level} unit={name} {event}",
        "<{level}> {name}: {event}",
        "{level} | {name} | {event}",
        "{ts} | {name} | {level} | {event}",
        "{name}: {level}: {event}",
        "{name} {level} - {event}",
        '{"level":"{level}","unit":"{name}","msg":"{event}"}',
        "{level}: {event} on {name}",
        "{ts} {level} {event} ({name})",
        "{level} {event}, reported by {name}",
        "{name} reports {level}: {event}",
    ),
    held_out=(
        "{ts} {name}: {level}: {event}",
        "{level} [{name}] {event}",
        "{ts} [{name}] {level}: {event}",
        'component={name} level={level} msg="{event}"',
        "{name} | {level} | {event}",
        "{ts} {level}: {event} on {name}",
    ),
)

LOG_FRAMES: dict[str, Frames] = {
    "restart": Frames(
        (
            "not responding for {n} s",
            "process crashed with exit code {n}",
            "watchdog timeout after {n} s",
            "service hung, no heartbeat for {n} s",
            "worker stopped responding",
            "crashed {n} times in a row",
            "no heartbeat since {n} s",
            "process exited with signal {n}",
            "main loop hung for {n} ms",
            "unresponsive, watchdog fired",
            "deadlock detected, process stuck",
            "stuck, not responding since {n} s",
            "service crashed",
            "hung since {n} s, watchdog reset",
            "process killed by signal {n}",
            "no response, worker stuck for {n} s",
        ),
        (
            "hung: watchdog fired after {n} s",
            "process stuck, not responding",
            "service crashed with signal {n}",
        ),
    ),
    "cool_down": Frames(
        (
            "temperature {n} C above limit",
            "overheating: {n} C",
            "thermal throttling at {n} C",
            "too hot, {n} degrees",
            "core temperature reached {n} C",
            "heat sink at {n} degrees, fan at maximum",
            "overheat alarm, {n} C",
            "temperature too high ({n} C)",
            "cpu hot: {n} C, throttling",
            "thermal limit reached, {n} degrees",
            "thermal alarm, {n} degrees",
            "{n} C is above the temperature limit",
            "core overheating",
            "running too hot at {n} C",
        ),
        (
            "overheating, core at {n} degrees",
            "thermal alarm: {n} C is too hot",
            "temperature limit reached: {n} C",
        ),
    ),
    "free_disk": Frames(
        (
            "disk {n}% full",
            "no space left on device",
            "disk usage at {n} percent",
            "only {n} MB of disk space left",
            "cannot write: disk full",
            "storage nearly full, {n}% used",
            "partition /data has {n} MB of disk free",
            "out of disk space",
            "log partition full at {n}%",
            "write failed, no space left",
            "{n}% of storage in use, cannot store more",
            "storage full",
            "{n} MB of disk space left, cannot write",
            "disk nearly full",
        ),
        (
            "storage full: {n} MB of space left",
            "disk space nearly out, {n}% used",
            "cannot write, {n}% of storage used",
        ),
    ),
    "free_memory": Frames(
        (
            "out of memory",
            "memory usage at {n} percent",
            "allocation of {n} MB failed",
            "oom killer ended pid {n}",
            "heap exhausted after {n} MB",
            "memory leak suspected, {n} MB in use",
            "swap full, {n} MB of memory left",
            "low memory: {n} MB free",
            "cannot allocate {n} bytes",
            "heap allocation of {n} MB refused",
            "memory exhausted",
            "only {n} MB of memory left",
            "allocation failed: {n} MB of memory in use",
        ),
        (
            "heap allocation failed, out of memory",
            "only {n} MB of memory free",
            "memory exhausted: cannot allocate {n} MB",
        ),
    ),
    "check_network": Frames(
        (
            "connection to 10.0.0.{n} refused",
            "network unreachable",
            "lost connection to broker after {n} s",
            "packet loss {n}%",
            "dns lookup failed",
            "mqtt broker unreachable for {n} s",
            "link down on eth{n}",
            "connection timed out after {n} ms",
            "wifi signal lost",
            "socket closed by peer",
            "no route to host 10.0.0.{n}",
            "network link lost for {n} s",
            "connection to broker lost",
            "broker not reachable",
            "wifi link down",
            "network down for {n} s",
        ),
        (
            "broker connection lost",
            "network link down for {n} s",
            "wifi connection timed out",
            "no route to broker, packet loss {n}%",
        ),
    ),
    "check_power": Frames(
        (
            "supply voltage dropped to {n} mV",
            "undervoltage detected",
            "power supply unstable: {n} mV",
            "brownout, input at {n} mV",
            "mains power lost",
            "overcurrent on rail {n}",
            "voltage below limit, {n} mV",
            "power failure, running on ups",
            "input voltage out of range",
            "undervoltage at {n} mV on the supply",
            "mains voltage too low",
            "voltage dropped to {n} mV",
            "supply rail {n} below limit",
            "brownout on the power supply",
        ),
        (
            "undervoltage on supply rail {n}",
            "mains voltage dropped below limit",
            "power supply brownout: {n} mV",
        ),
    ),
    "replace_battery": Frames(
        (
            "battery at {n} percent",
            "battery low ({n}%)",
            "battery worn out after {n} cycles",
            "battery health {n}%, replace soon",
            "cell voltage low, battery weak",
            "battery empty",
            "backup battery needs replacement",
            "battery no longer holds charge",
            "low charge, {n}% left in the battery",
            "battery charge at {n}%",
            "weak battery",
            "battery health down to {n} percent",
        ),
        (
            "weak battery: {n}% health",
            "battery charge low, {n} percent",
            "backup battery worn out",
        ),
    ),
    "recalibrate": Frames(
        (
            "reading drifted by {n} %",
            "calibration expired {n} days ago",
            "offset of {n} units, out of calibration",
            "calibration drift {n} ppm",
            "readings off by {n} from reference",
            "zero point shifted by {n}",
            "calibration check failed",
            "measured value deviates {n}% from reference",
            "not calibrated for {n} days",
            "sensor drift, calibration needed",
            "drift of {n} ppm",
            "zero point drifted by {n} units",
            "offset {n} from reference",
        ),
        (
            "drift of {n} units from reference",
            "calibration offset {n} ppm",
            "zero point drifted, calibration needed",
        ),
    ),
    "update_firmware": Frames(
        (
            "firmware {n} is outdated",
            "new firmware version {n} available",
            "firmware older than required version {n}",
            "unsupported firmware version {n}",
            "security patch {n} missing",
            "update to version {n} required",
            "running old firmware build {n}",
            "firmware mismatch, expected build {n}",
            "outdated version {n}, update available",
            "firmware outdated",
            "old build {n}, update required",
            "version {n} too old, patch missing",
        ),
        (
            "outdated firmware build {n}",
            "firmware update required",
            "old version {n}, security patch missing",
        ),
    ),
    "renew_certificate": Frames(
        (
            "certificate expires in {n} days",
            "tls certificate expired",
            "certificate not valid after day {n}",
            "x509: certificate has expired",
            "tls handshake failed, certificate too old",
            "cert expired {n} days ago",
            "client certificate about to expire",
            "x509 cert valid for only {n} more days",
            "cert expires in {n} h",
            "tls cert not valid",
            "certificate expired {n} h ago",
            "x509 certificate about to expire",
        ),
        (
            "tls cert expires in {n} h",
            "client certificate expired {n} days ago",
            "x509 certificate not valid",
        ),
    ),
    "sync_clock": Frames(
        (
            "clock off by {n} s",
            "time drift of {n} ms",
            "ntp sync lost",
            "clock skew {n} s",
            "system time wrong by {n} s",
            "ntp server not reachable, clock not in sync",
            "timestamp {n} s in the future",
            "clock jumped back {n} s",
            "system clock drifts, {n} ms per day",
            "time off by {n} ms",
            "clock skew, time sync lost",
            "ntp: clock drift of {n} s",
        ),
        (
            "clock drift of {n} ms",
            "ntp: system clock off by {n} s",
            "time skew {n} s, sync lost",
        ),
    ),
    "check_login": Frames(
        (
            "{n} failed login attempts",
            "invalid password for user admin",
            "access denied for uid {n}",
            "authentication failed",
            "wrong password, attempt {n}",
            "unauthorized access from 10.0.0.{n}",
            "login rejected for user {n}",
            "bad token, access denied",
            "ssh login failed {n} times",
            "authentication rejected, invalid user",
            "wrong password for user {n}",
            "login failed from 10.0.0.{n}",
            "invalid token",
            "wrong password {n} times",
        ),
        (
            "wrong password from 10.0.0.{n}",
            "authentication failed, invalid token",
            "failed login for user {n}",
        ),
    ),
    "clean_filter": Frames(
        (
            "filter clogged",
            "air flow down to {n}%, filter dirty",
            "filter blocked, pressure drop {n} Pa",
            "dust level {n}, clean the filter",
            "filter pressure {n} Pa above limit",
            "filter due for cleaning after {n} h",
            "dirty air filter",
            "dust in the filter, flow {n}%",
            "filter dirty",
            "clogged air filter, pressure drop {n} Pa",
            "blocked filter",
        ),
        (
            "dirty filter, pressure drop {n} Pa",
            "air filter clogged: flow {n}%",
            "filter blocked by dust",
        ),
    ),
    "none": Frames(
        (
            "started in {n} ms",
            "heartbeat ok",
            "connected to broker",
            "job {n} finished",
            "configuration loaded",
            "health check passed in {n} ms",
            "temperature normal, {n} C",
            "sync complete, {n} files",
            "update installed successfully",
            "battery fully charged",
            "backup finished in {n} s",
            "listening on port {n}",
            "shutdown complete",
            "all {n} checks passed",
            "new session {n} opened",
            "self test ok",
            "network link up",
            "login of user {n} ok",
            "backup complete",
            "job {n} done",
            "health check finished, all ok",
            "configuration {n} applied",
        ),
        (
            "backup complete in {n} s",
            "health check ok",
            "job {n} finished successfully",
            "configuration loaded in {n} ms, all ok",
        ),
    ),
}

# Words that device names are put together from.
PARTS = tuple(
    "pump sensor camera cam fan valve motor heater gateway router conveyor robot arm boiler tank meter relay switch "
    "disk net mqtt auth ups psu gpu cpu modbus can edge sync web api db cache queue worker node rack line press "
    "mixer drill laser printer scanner lift door gate lock light lamp probe thermo hydro solar grid inverter charger "
    "compressor chiller hvac core hub bridge agent logger backup update store svc main aux left right north south "
    "pi jetson zone bay unit plc hmi io uart spi".split()
)
HELD_OUT_PARTS = tuple(
    "crane turbine feeder furnace dryer winder beacon cooler rotor hopper kiln mast tracker radar east west "
    "proxy daemon broker scale".split()
)

# --- Commands -------------------------------------------------------------------------------------------------------

ROOMS = (
    *(
        "closet den foyer shed loft patio conservatory utility storage cabin studio gallery chapel canteen clinic "
        "hangar dock platform courtyard driveway mezzanine archive vault pavilion arcade roof tunnel stairwell "
        "entrance lounge bunker stockroom playroom sunroom breezeway annex vestibule spare master guest corner "
        "lower upper inner outer north south"
    ).split(),
    "wine cellar",
    "boiler room",
    "meeting room",
    "dressing room",
    "back yard",
    "kitchen",
    "bedroom",
    "living room",
    "bathroom",
    "garage",
    "hallway",
    "office",
    "basement",
    "attic",
    "garden",
    "porch",
    "nursery",
    "cellar",
    "workshop",
    "greenhouse",
    "lobby",
    "server room",
    "dining room",
    "laundry",
    "balcony",
    "main",
    "upstairs",
    "left",
    "right",
    "back",
    "front",
)
HELD_OUT_ROOMS = ("pantry", "study", "barn", "stable", "library", "corridor", "sauna", "guest room", "terrace")
DEVICES = tuple(
    "light lamp fan heater pump valve door window blind curtain thermostat speaker camera sprinkler oven kettle "
    "radio gate shutter humidifier dimmer boiler router monitor charger awning siren projector freezer mixer "
    "volume brightness temperature humidity pressure speed level meter sensor lights blinds machine robot "
    "spotlight bulb strip television screen doorbell intercom buzzer horn bell alarm detector microwave toaster "
    "fridge dishwasher washer vacuum mower fountain jacuzzi hob stove grill fireplace ventilator exhaust purifier "
    "generator battery inverter winch hoist elevator escalator treadmill tractor printer scanner computer laptop "
    "tablet server recorder turntable amplifier subwoofer console keypad lock padlock latch cover hood flap "
    "barrier drawbridge umbrella canopy skylight porthole trapdoor panel cabinet drawer safe locker carousel "
    "incubator aquarium terrarium press saw drill lathe grinder welder cutter sorter packer agitator centrifuge "
    "filter nozzle faucet hydrant hose bucket cistern reservoir pool tub shower sink toilet".split()
)
HELD_OUT_DEVICES = tuple("chandelier lantern cooler vent hatch compressor conveyor dryer radiator tap drone".split())
MODES = "blue red green white yellow purple warm cold eco auto manual night quiet fast slow".split()

# Before any command, and only before one that begins with a verb.
COMMAND_PREFIXES = (*("",) * 12, "hey, ", "ok, ", "um, ", "hey edge, ", "alright, ", "computer, ", "now, ", "so, ")
VERB_PREFIXES = (
    *COMMAND_PREFIXES,
    "please ",
    "please ",
    "could you ",
    "can you ",
    "can you please ",
    "would you ",
    "i want you to ",
    "now ",
    "quickly ",
    "hey, please ",
)
NO_VERB = ("{n}", "{v}", "the ", "i ", "what", "how", "status")
COMMAND_SUFFIXES = (
    *("",) * 12,
    " please",
    " please",
    ", please",
    " now",
    " right now",
    " thanks",
    ", thank you",
    " for me",
    "!",
)

COMMAND_FRAMES: dict[str, Frames] = {
    "turn_on": Frames(
        (
            "turn on the {n}",
            "switch on the {n}",
            "turn the {n} on",
            "switch the {n} on",
            "turn on {n}",
            "power on the {n}",
            "start the {n}",
            "activate the {n}",
            "enable the {n}",
            "{n} on",
            "get the {n} running",
            "i want the {n} on",
            "put the {n} on",
            "power up the {n}",
            "i need the {n} running",
        ),
        ("power the {n} on", "switch on {n}", "i need the {n} on", "get the {n} on"),
    ),
    "turn_off": Frames(
        (
            "turn off the {n}",
            "switch off the {n}",
            "turn the {n} off",
            "switch the {n} off",
            "turn off {n}",
            "shut off the {n}",
            "power off the {n}",
            "stop the {n}",
            "deactivate the {n}",
            "disable the {n}",
            "{n} off",
            "i want the {n} off",
            "get the {n} off",
            "put the {n} off",
            "shut down the {n}",
        ),
        ("power the {n} off", "switch off {n}", "shut the {n} off", "i need the {n} off"),
    ),
    "open": Frames(
        (
            "open the {n}",
            "open up the {n}",
            "open {n}",
            "{n} open",
            "get the {n} open",
            "slide the {n} open",
            "leave the {n} open",
            "i need the {n} open",
            "the {n} should be open",
            "make the {n} open",
            "swing the {n} open",
        ),
        ("i want the {n} open", "keep the {n} open", "make sure the {n} is open"),
    ),
    "close": Frames(
        (
            "close the {n}",
            "close {n}",
            "shut the {n}",
            "{n} closed",
            "get the {n} closed",
            "slide the {n} shut",
            "close up the {n}",
            "pull the {n} shut",
            "i need the {n} closed",
            "the {n} should be closed",
            "keep the {n} closed",
            "shut the {n} tight",
        ),
        ("i want the {n} closed", "get the {n} shut", "make sure the {n} is closed"),
    ),
    "lock": Frames(
        (
            "lock the {n}",
            "lock up the {n}",
            "secure the {n}",
            "make sure the {n} is locked",
            "{n} locked",
            "bolt the {n}",
            "keep the {n} locked",
            "i need the {n} locked",
            "the {n} should be locked",
            "leave the {n} locked",
        ),
        ("get the {n} locked", "i want the {n} locked", "lock {n}"),
    ),
    "unlock": Frames(
        (
            "unlock the {n}",
            "make sure the {n} is unlocked",
            "{n} unlocked",
            "unbolt the {n}",
            "release the lock on the {n}",
            "leave the {n} unlocked",
            "take the lock off the {n}",
            "i need the {n} unlocked",
            "the {n} should be unlocked",
            "keep the {n} unlocked",
        ),
        ("get the {n} unlocked", "i want the {n} unlocked", "unlock {n}"),
    ),
    "set": Frames(
        (
            "set the {n} to {v}",
            "set {n} to {v}",
            "put the {n} at {v}",
            "change the {n} to {v}",
            "adjust the {n} to {v}",
            "make the {n} {v}",
            "i want the {n} at {v}",
            "bring the {n} to {v}",
            "{n} to {v}",
            "keep the {n} at {v}",
            "turn the {n} to {v}",
            "dial the {n} to {v}",
            "i need the {n} set to {v}",
            "have the {n} at {v}",
        ),
        ("put the {n} to {v}", "adjust {n} to {v}", "set the {n} at {v}", "i need the {n} at {v}"),
    ),
    "increase": Frames(
        (
            "increase the {n} by {v}",
            "raise the {n} by {v}",
            "turn up the {n} by {v}",
            "turn the {n} up by {v}",
            "add {v} to the {n}",
            "bump the {n} up by {v}",
            "raise {n} by {v}",
            "turn up the {n}",
            "turn the {n} up",
            "increase the {n}",
            "raise the {n}",
            "make the {n} higher",
            "i need the {n} higher",
            "bring the {n} up",
            "push the {n} up by {v}",
        ),
        ("bump up the {n} by {v}", "increase {n} by {v}", "bring the {n} up by {v}", "i want the {n} higher"),
    ),
    "decrease": Frames(
        (
            "decrease the {n} by {v}",
            "lower the {n} by {v}",
            "reduce the {n} by {v}",
            "turn down the {n} by {v}",
            "turn the {n} down by {v}",
            "take {v} off the {n}",
            "bump the {n} down by {v}",
            "lower {n} by {v}",
            "turn down the {n}",
            "turn the {n} down",
            "reduce the {n}",
            "lower the {n}",
            "make the {n} lower",
            "i need the {n} lower",
            "bring the {n} down",
            "push the {n} down by {v}",
        ),
        ("bump down the {n} by {v}", "reduce {n} by {v}", "bring the {n} down by {v}", "i want the {n} lower"),
    ),
    "read": Frames(
        (
            "what is the {n} at",
            "how high is the {n}",
            "read the {n}",
            "tell me the {n}",
            "check the {n}",
            "what does the {n} say",
            "show me the {n}",
            "show me what the {n} says",
            "what's the status of the {n}",
            "give me the {n}",
            "report the {n}",
            "how is the {n} doing",
            "status of the {n}",
            "give me the reading of the {n}",
            "tell me the status of the {n}",
            "what is the {n} doing",
        ),
        ("what is the status of the {n}", "give me the status of the {n}", "tell me what the {n} says", "read {n}"),
    ),
    "restart": Frames(
        (
            "restart the {n}",
            "restart {n}",
            "reboot the {n}",
            "reset the {n}",
            "power cycle the {n}",
            "turn the {n} off and on again",
            "give the {n} a restart",
            "start the {n} again",
            "do a reboot of the {n}",
            "the {n} needs a restart",
            "switch the {n} off and then on",
        ),
        ("give the {n} a reboot", "switch the {n} off and on again", "do a restart of the {n}", "reboot {n}"),
    ),
    "run_for": Frames(
        (
            "run the {n} for {v} minutes",
            "keep the {n} on for {v} minutes",
            "turn on the {n} for {v} minutes",
            "let the {n} run for {v} minutes",
            "use the {n} for {v} minutes",
            "leave the {n} running for {v} minutes",
            "start the {n} for {v} minutes",
            "{v} minutes of {n}",
            "have the {n} on for {v} minutes",
            "switch the {n} on for {v} minutes",
            "keep {n} going for {v} minutes",
        ),
        ("keep the {n} running for {v} minutes", "switch on the {n} for {v} minutes", "run {n} for {v} minutes"),
    ),
}

# --- Statuses and their Korean --------------------------------------------------------------------------------------

KOREAN_NOUNS = (
    ("pump", "펌프"),
    ("sensor", "센서"),
    ("camera", "카메라"),
    ("fan", "팬"),
    ("valve", "밸브"),
    ("motor", "모터"),
    ("heater", "히터"),
    ("light", "조명"),
    ("door", "문"),
    ("gateway", "게이트웨이"),
    ("robot", "로봇"),
    ("conveyor", "컨베이어"),
    ("router", "라우터"),
    ("tank", "탱크"),
    ("compressor", "압축기"),
    ("boiler", "보일러"),
    ("controller", "제어기"),
    ("freezer", "냉동고"),
    ("server", "서버"),
    ("printer", "프린터"),
)
KOREAN_PLACES = (
    ("kitchen", "주방"),
    ("garage", "차고"),
    ("warehouse", "창고"),
    ("office", "사무실"),
    ("basement", "지하실"),
    ("yard", "마당"),
    ("garden", "정원"),
    ("lab", "실험실"),
    ("factory", "공장"),
    ("lobby", "로비"),
    ("greenhouse", "온실"),
    ("workshop", "작업장"),
    ("hallway", "복도"),
)

STATUS_FRAMES: dict[str, Frames] = {
    "{S}{이} 정상 작동 중입니다.": Frames(
        (
            "{S} is running normally",
            "{S} is working normally",
            "{S} works as it should",
            "{S} is working fine",
            "{S} runs well",
        ),
        ("{S} is running fine",),
    ),
    "{S}{이} 멈췄습니다.": Frames(
        (
            "{S} has stopped",
            "{S} stopped",
            "{S} came to a stop",
            "{S} has come to a halt",
            "{S} has halted",
            "{S} halted",
        ),
        ("{S} came to a halt",),
    ),
    "{S}의 연결이 끊어졌습니다.": Frames(
        (
            "{S} is offline",
            "{S} lost its connection",
            "{S} has gone offline",
            "{S} has lost contact",
            "the connection to {S} was lost",
            "{S} is disconnected",
        ),
        ("{S} has lost the connection", "{S} went offline"),
    ),
    "{S}{이} 다시 연결되었습니다.": Frames(
        ("{S} is back online", "{S} has reconnected", "{S} is connected again", "{S} came back online", "{S} is back"),
        ("{S} is online again", "{S} reconnected"),
    ),
    "{S}의 배터리는 {n}퍼센트입니다.": Frames(
        (
            "the battery of {S} is at {n} percent",
            "{S} has {n} percent battery left",
            "{S} has {n}% battery",
            "the battery level of {S} is {n} percent",
        ),
        ("the battery of {S} has {n} percent left", "{S} battery is at {n}%"),
    ),
    "{S}의 배터리가 부족합니다.": Frames(
        ("the battery of {S} is low", "{S} is low on battery", "{S} has a low battery", "{S} battery is running low"),
        ("the battery of {S} is running low",),
    ),
    "{S}의 온도는 {n}도입니다.": Frames(
        (
            "the temperature of {S} is {n} degrees",
            "{S} is at {n} degrees",
            "{S} has a temperature of {n} degrees",
            "{S} reports a temperature of {n} degrees",
            "{S} shows {n} degrees",
            "temperature at {S} is {n} degrees",
        ),
        ("{S} temperature is {n} degrees", "{S} reports {n} degrees"),
    ),
    "{S}의 온도가 너무 높습니다.": Frames(
        (
            "{S} is too hot",
            "the temperature of {S} is too high",
            "{S} is overheating",
            "{S} temperature is too high",
            "{S} became too hot",
        ),
        ("{S} has become too hot",),
    ),
    "{S}의 습도는 {n}퍼센트입니다.": Frames(
        (
            "the humidity of {S} is {n} percent",
            "{S} reports a humidity of {n} percent",
            "{S} measures {n}% humidity",
            "humidity at {S} is {n} percent",
        ),
        ("{S} has a humidity of {n} percent", "the humidity at {S} is {n}%"),
    ),
    "{S}의 압력은 {n}바입니다.": Frames(
        (
            "the pressure of {S} is {n} bar",
            "{S} reports a pressure of {n} bar",
            "{S} is at {n} bar",
            "pressure at {S} is {n} bar",
        ),
        ("{S} has a pressure of {n} bar", "the pressure at {S} is {n} bar"),
    ),
    "{S}{이} 열려 있습니다.": Frames(
        ("{S} is open", "{S} is standing open", "{S} was left open", "{S} is still open", "{S} stays open"),
        ("{S} stands open",),
    ),
    "{S}{이} 닫혀 있습니다.": Frames(
        ("{S} is closed", "{S} is shut", "{S} is still closed", "{S} remains closed", "{S} remains shut"),
        ("{S} is still shut",),
    ),
    "{S}{이} 켜졌습니다.": Frames(
        ("{S} was turned on", "{S} was switched on", "{S} has been turned on", "{S} turned on"),
        ("{S} has been switched on", "{S} switched on"),
    ),
    "{S}{이} 꺼졌습니다.": Frames(
        ("{S} was turned off", "{S} was switched off", "{S} has been turned off", "{S} turned off"),
        ("{S} has been switched off", "{S} switched off"),
    ),
    "{S}{이} 다시 시작되고 있습니다.": Frames(
        ("{S} is restarting", "{S} is rebooting", "{S} is starting again", "a restart of {S} is in progress"),
        ("{S} is being restarted", "a reboot of {S} is in progress"),
    ),
    "{S}의 펌웨어를 업데이트하는 중입니다.": Frames(
        (
            "{S} is updating its firmware",
            "the firmware of {S} is being updated",
            "{S} is installing new firmware",
            "a firmware update of {S} is in progress",
        ),
        ("{S} is installing a firmware update", "new firmware is being installed on {S}"),
    ),
    "{S}의 업데이트가 완료되었습니다.": Frames(
        (
            "the update of {S} is complete",
            "{S} has finished its update",
            "{S} finished updating",
            "the update of {S} has finished",
        ),
        ("{S} has completed its update", "{S} has finished updating"),
    ),
    "{S}에서 오류 {n}번이 발생했습니다.": Frames(
        (
            "{S} reports error {n}",
            "error {n} occurred on {S}",
            "{S} failed with error {n}",
            "{S} shows error code {n}",
        ),
        ("{S} reports error code {n}", "error code {n} occurred on {S}"),
    ),
    "{S}의 디스크 사용률은 {n}퍼센트입니다.": Frames(
        (
            "the disk of {S} is {n} percent full",
            "{S} uses {n} percent of its disk",
            "{S} disk usage is {n}%",
            "disk usage of {S} is at {n} percent",
        ),
        ("the disk usage of {S} is {n} percent", "{S} has used {n}% of its disk"),
    ),
    "{S}의 메모리 사용률은 {n}퍼센트입니다.": Frames(
        (
            "{S} uses {n} percent of its memory",
            "{S} memory usage is {n}%",
            "memory usage of {S} is at {n} percent",
            "the memory of {S} is {n} percent full",
        ),
        ("the memory usage of {S} is {n} percent", "{S} has used {n}% of its memory"),
    ),
    "{S}의 점검이 필요합니다.": Frames(
        ("{S} needs maintenance", "{S} requires maintenance", "maintenance is due for {S}", "{S} has to be serviced"),
        ("{S} is due for maintenance", "{S} needs to be serviced"),
    ),
    "{S}의 필터를 교체해야 합니다.": Frames(
        (
            "the filter of {S} must be replaced",
            "{S} needs a new filter",
            "the filter of {S} needs replacing",
            "replace the filter of {S}",
        ),
        ("{S} requires a new filter", "the filter of {S} has to be replaced"),
    ),
    "{S}{이} 명령을 기다리고 있습니다.": Frames(
        (
            "{S} is waiting for a command",
            "{S} is waiting for commands",
            "{S} waits for the next command",
            "{S} is idle and waits for a command",
            "{S} is waiting for a new command",
        ),
        ("{S} is waiting for the next command",),
    ),
    "{S}에 대기 중인 메시지가 {n}개 있습니다.": Frames(
        (
            "{S} has {n} pending messages",
            "{n} messages are pending on {S}",
            "there are {n} messages waiting on {S}",
            "{S} has {n} messages in its queue",
        ),
        ("{S} has {n} messages waiting", "there are {n} pending messages on {S}"),
    ),
    "{S}의 신호가 약합니다.": Frames(
        ("the signal of {S} is weak", "{S} has a weak signal", "{S} reports a weak signal", "signal at {S} is weak"),
        ("the signal at {S} is weak",),
    ),
    "{S}{이} {n}시간째 작동 중입니다.": Frames(
        (
            "{S} has been running for {n} hours",
            "{S} is running for {n} hours now",
            "{S} has an uptime of {n} hours",
            "{S} has been up for {n} hours",
        ),
        ("{S} has been working for {n} hours", "the uptime of {S} is {n} hours"),
    ),
    "{S}에서 누수가 감지되었습니다.": Frames(
        (
            "a leak was detected at {S}",
            "{S} detected a leak",
            "water is leaking at {S}",
            "{S} reports a leak",
        ),
        ("{S} has detected a leak", "there is a leak at {S}"),
    ),
    "{S}에서 움직임이 감지되었습니다.": Frames(
        (
            "motion was detected at {S}",
            "{S} detected motion",
            "{S} reports motion",
            "there is motion at {S}",
        ),
        ("{S} has detected motion", "{S} detected movement"),
    ),
    "{S}{이} 충전 중입니다.": Frames(
        ("{S} is charging", "{S} is being charged", "{S} is now charging", "the battery of {S} is charging"),
        ("the battery of {S} is being charged",),
    ),
    "{S}의 충전이 완료되었습니다.": Frames(
        (
            "{S} is fully charged",
            "{S} has finished charging",
            "the battery of {S} is fully charged",
            "charging of {S} is complete",
        ),
        ("{S} finished charging", "the charging of {S} has finished"),
    ),
    "{S}의 속도는 분당 {n}회전입니다.": Frames(
        (
            "{S} is running at {n} rpm",
            "the speed of {S} is {n} rpm",
            "{S} turns at {n} rpm",
            "{S} has a speed of {n} rpm",
        ),
        ("{S} speed is {n} rpm", "{S} reports a speed of {n} rpm"),
    ),
    "{S}의 수위는 {n}센티미터입니다.": Frames(
        (
            "the water level of {S} is {n} centimeters",
            "{S} reports a water level of {n} centimeters",
            "water level at {S} is {n} centimeters",
            "the water in {S} is {n} centimeters high",
        ),
        ("{S} has a water level of {n} centimeters", "the water level at {S} is {n} centimeters"),
    ),
}
