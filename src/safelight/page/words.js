/** Numbers and states as people read them. */

const MEGA = 1e6;
const GIGA = 1e9;

/** @returns {string} such as "23 MB", "11.9 GB" */
export function bytes(count) {
  if (count >= GIGA) return `${(count / GIGA).toFixed(1)} GB`;
  if (count >= MEGA) return `${(count / MEGA).toFixed(count < 10 * MEGA ? 1 : 0)} MB`;
  return `${Math.ceil(count / 1000)} kB`;
}

/** @returns {string} such as "8 s", "2 min 5 s", "3 h 20 min" */
export function duration(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** @returns {string} such as "about 8 s left", and nothing for what is not known */
export function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return seconds < 1 ? "almost there" : `about ${duration(seconds)} left`;
}

/** @returns {string} when that was, as short as it can be said */
export function moment(isoTime) {
  const time = new Date(isoTime);
  const isToday = time.toDateString() === new Date().toDateString();
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return isToday ? clock : `${time.toLocaleDateString([], { day: "numeric", month: "short" })}, ${clock}`;
}

/** @returns {string} a job's state in a word or two */
export function jobState(job) {
  if (job.status === "processing") return `step ${job.progress.step} of ${job.progress.total}`;
  const words = { sending: "sending", starting: "waiting", succeeded: "finished", failed: "failed", canceled: "cancelled" };
  return words[job.status];
}

const PHASES = {
  starting: "Starting a worker",
  verify: "Checking the model's files",
  import: "Starting the engine",
  weights: "Reading the weights",
  to_device: "Moving the weights to the device",
  warmup: "Warming up with a first picture",
};

/** @returns {string} what a worker is at, as a sentence */
export function phase(worker) {
  if (worker.state === "failed") return "The model could not be loaded";
  if (worker.state === "restarting") return "The worker starts again";
  if (worker.state === "draining") return "The server is shutting down";
  return PHASES[worker.phase] ?? "Ready";
}

/** @returns {string} such as "text encoder 2" */
export const componentName = (name) => name.replaceAll("_", " ");
