local health = { status = "Progressing", message = "it has not joined yet" }
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Ready" then
    health.message = condition.message
    if condition.status ~= "True" then
      health.status = "Degraded"
    elseif obj.spec ~= nil and obj.spec.unschedulable then
      health.status = "Suspended"
    else
      health.status = "Healthy"
    end
  end
end
return health
