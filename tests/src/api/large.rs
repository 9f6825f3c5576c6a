//! Objects of a large cluster, as a real one has them, for measurements.

use serde_json::{Value, json};

use super::ApiServer;

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pods, each with an address of its own and ready.
    pub pods: usize,
    /// Services, each with an EndpointSlice; all pods are endpoints of one.
    pub services: usize,
    /// Nodes that pods are spread over: `node-0` and up.
    pub nodes: usize,
}

/// Puts the objects of a large cluster in, in the namespaces `ns-0` to `ns-99`: pod `pod-N` is on `node-(N % nodes)` and an
/// endpoint of service `svc-(N % services)`.
pub fn fill(server: &ApiServer, size: &Size) {
    const NAMESPACES: usize = 100;
    for number in 0..NAMESPACES.min(size.services) {
        server.put(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("ns-{number}")},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        }));
    }
    for number in 0..size.nodes {
        server.put(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("node-{number}"), "labels": {"topology.kubernetes.io/zone": format!("z{}", number % 3)}},
            "spec": {"podCIDR": "10.0.0.0/24"}, "status": {"addresses": [{"type": "InternalIP", "address": address(172, number)}]},
        }));
    }
    let mut endpoints: Vec<Vec<Value>> = vec![Vec::new(); size.services];
    for number in 0..size.pods {
        let service = number % size.services;
        let namespace = format!("ns-{}", service % NAMESPACES);
        let stored = server.put(pod(number, service, &namespace, size.nodes));
        if let Some(list) = endpoints.get_mut(service) {
            list.push(json!({
                "addresses": [address(10, number)], "nodeName": format!("node-{}", number % size.nodes),
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("pod-{number}"), "uid": stored["metadata"]["uid"]},
            }));
        }
    }
    for (number, endpoints) in endpoints.into_iter().enumerate() {
        let namespace = format!("ns-{}", number % NAMESPACES);
        let name = format!("svc-{number}");
        server.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "type": "ClusterIP", "clusterIP": address(172, 1_000_000 + number), "selector": {"app": name},
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            },
            "status": {"loadBalancer": {}},
        }));
        server.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{name}-x"), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "test"},
            },
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
        }));
    }
}

fn pod(number: usize, service: usize, namespace: &str, nodes: usize) -> Value {
    let address = address(10, number);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"), "namespace": namespace,
            "labels": {"app": format!("svc-{service}"), "pod-template-hash": "58b96685dd"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("svc-{service}-58b96685dd"),
                "uid": "8522d610-d92f-4ee7-afbf-fc2c9683b31a", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "nodeName": format!("node-{}", number % nodes), "serviceAccountName": format!("sa-{}", service % 100),
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "app", "image": "registry.example.com/team/app:1.2.3", "imagePullPolicy": "IfNotPresent",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [{"name": "SETTING", "value": "a value of some length, as they are"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10},
                "volumeMounts": [{"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            }],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "qosClass": "Burstable",
            "conditions": [
                {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-22T09:56:48Z"},
                {"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-22T09:56:46Z"},
            ],
            "containerStatuses": [{
                "name": "app", "ready": true, "restartCount": 0, "started": true, "image": "registry.example.com/team/app:1.2.3",
                "imageID": "sha256:506a9055f92b47b700e57a8092d9e17ee24addf8d19ab7c4663726762a703142",
                "containerID": format!("containerd://{number:064x}"), "state": {"running": {"startedAt": "2026-11-22T09:56:48Z"}},
            }],
        },
    })
}

/// An address of `first.0.0.0/8`.
fn address(first: u8, number: usize) -> String {
    let [_, a, b, c] = (u32::try_from(number).unwrap_or_default() + 1).to_be_bytes();
    format!("{first}.{a}.{b}.{c}")
}
