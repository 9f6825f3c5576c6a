use super::*;
use crate::discovery::{
    object::{Object, Pod},
    parse,
};

/// A store that is fed with texts.
#[derive(Default)]
struct Fixture(Store);

impl Fixture {
    fn write(&mut self, name: &str, text: &str) -> &mut Self {
        let path = Arc::new(PathBuf::from(name));
        let read = parse::file(&path, text);
        self.0.put(path, read);
        self
    }

    fn delete(&mut self, name: &str) -> &mut Self {
        self.0.retain(|path| path.to_str() != Some(name));
        self
    }

    /// `file:line name account` of each pod in force, and the codes of the problems.
    fn shown(&mut self) -> (String, String) {
        let in_force = self.0.in_force();
        let pods = in_force.objects.iter().map(|loaded| {
            let Object::Pod(Pod { service_account, .. }) = &*loaded.object else { panic!() };
            format!("{} {} {service_account}", loaded.location, loaded.key.name.name)
        });
        let problems = in_force.problems.iter().map(|problem| format!("{} {}", problem.location, problem.reason));
        (pods.collect::<Vec<_>>().join(", "), problems.collect::<Vec<_>>().join(", "))
    }

    fn expect(&mut self, pods: &str, problems: &str) {
        assert_eq!(self.shown(), (pods.to_owned(), problems.to_owned()));
    }
}

/// A pod whose service account tells versions apart.
fn pod(name: &str, account: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{serviceAccountName: {account}}}}}\n")
}

const BROKEN: &str = "---\n{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {mesh-agent.io/mesh: on}}}\n";

#[test]
fn files_come_change_and_go() {
    let mut store = Fixture::default();
    store.expect("", "");
    store.write("a", &(pod("a", "one") + &pod("b", "one"))).expect("a:2 a one, a:4 b one", "");
    store.write("a", &pod("b", "two")).expect("a:2 b two", "");
    store.delete("a").expect("", "");
}

#[test]
fn a_broken_file_keeps_its_objects() {
    let mut store = Fixture::default();
    store.write("a", &pod("a", "one")).write("b", &pod("b", "one")).shown();
    store.write("a", "{").expect("a:2 a one, b:2 b one", "a:2 bad_yaml");
    store.write("a", &pod("a", "two")).expect("a:2 a two, b:2 b one", "");
    store.write("c", "{").expect("a:2 a two, b:2 b one", "c:2 bad_yaml");
    store.delete("a").delete("c").expect("b:2 b one", "");
}

#[test]
fn a_broken_object_keeps_its_last_good_version() {
    let mut store = Fixture::default();
    // Never good: what can be read of it, and reported.
    store.write("a", BROKEN).expect("a:2 a default", "a:2 unknown_annotation");
    store
        .write("a", &BROKEN.replace("}}}", "}}, spec: {serviceAccountName: new}}"))
        .expect("a:2 a new", "a:2 unknown_annotation");
    store.write("a", &pod("a", "one")).expect("a:2 a one", "");
    store.write("a", &(pod("b", "one") + BROKEN)).expect("a:2 b one, a:4 a one", "a:4 unknown_annotation");
    // Still good after any number of readings.
    store.expect("a:2 b one, a:4 a one", "a:4 unknown_annotation");
    // Gone on purpose: the old version does not come back.
    store.write("a", &pod("b", "one")).expect("a:2 b one", "");
    store.write("a", BROKEN).expect("a:2 a default", "a:2 unknown_annotation");
}

#[test]
fn an_object_that_lost_its_name_stays() {
    let mut store = Fixture::default();
    let nameless = "---\n{apiVersion: v1, kind: Pod, metadata: {}}\n";
    store.write("a", &(pod("a", "one") + &pod("b", "one"))).shown();
    store.write("a", &(pod("a", "two") + nameless)).expect("a:2 a two, a:4 b one", "a:4 bad_field");
    store.write("a", &(pod("a", "two") + nameless)).expect("a:2 a two, a:4 b one", "a:4 bad_field");
    store.write("a", &(pod("a", "two") + "---\nspec: {}\n")).expect("a:2 a two, a:4 b one", "a:4 unknown_kind");
    store.write("a", &pod("a", "two")).expect("a:2 a two", "");
}

#[test]
fn the_first_of_two_definitions_stays() {
    let mut store = Fixture::default();
    store.write("b", &(pod("a", "one") + &pod("a", "two"))).expect("b:2 a one", "b:4 duplicate_object");
    // A file that sorts before does not take over what is in force ...
    store.write("b", &pod("a", "one")).write("a", &pod("a", "three")).expect("b:2 a one", "a:2 duplicate_object");
    // ... until that is gone: so an object can be moved.
    store.delete("b").expect("a:2 a three", "");
}
