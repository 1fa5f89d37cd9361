-- A task that runs once is done when it has finished; one that is always started again is healthy while it is ready.
local health = { status = "Progressing", message = "not looked at yet" }
local status = obj.status
if status == nil or status.phase == nil then
  return health
end
health.message = status.message
if health.message == nil or health.message == "" then
  health.message = status.reason or status.phase
end
local ready = false
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Stalled" and condition.status == "True" then
    health.status = "Degraded"
    return health
  end
  ready = ready or (condition.type == "Ready" and condition.status == "True")
end
if status.phase == "Finished" then
  health.status = "Healthy"
elseif status.phase == "Killed" then
  -- Somebody wanted it so.
  health.status = "Suspended"
elseif status.phase == "Running" and ready and obj.spec.restartPolicy == "Always" then
  health.status = "Healthy"
elseif status.phase == "Running" and status.reachability ~= nil and status.reachability ~= "Reachable" then
  health.status = "Unknown"
end
return health
